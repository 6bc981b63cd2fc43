/** An answer is followed: the events of its stream, through any number of lost connections, become a message. */

import { StreamError } from "/v1/client.js";

/**
 * Writes a stream into *message*, to its end, which it returns: "completed", "failed" or "stopped".
 * @param {ReturnType<import("/v1/client.js").StreamClient["follow"]>} events
 * @param {import("./message.js").Message} message
 * @param {{ retry: () => void }} options
 */
export async function write(events, message, { retry }) {
  message.begin();
  for await (const { type, data } of events) {
    if (type === "delta") message.write(data.text);
    else if (type === "reasoning") message.reason(data.text);
    else if (type === "status") message.activity(data.text); // an event of the app's own, as is
    else if (type === "sources") message.cite(data);
    else if (type === "completed") message.end(type);
    else if (type === "stopped") message.end(type, { note: "Stopped." });
    else if (type === "failed") message.end(type, { note: data.error.user_message, retry });
  }
}

/** What a person is told of an error. */
export function sentence(error) {
  return error instanceof StreamError ? error.userMessage : "The server could not be reached. Please try again.";
}
