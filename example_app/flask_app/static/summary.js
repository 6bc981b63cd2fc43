// Follows the stream that the server has started, from its beginning: so after a reload, too.

import { StreamClient, StreamError } from "/v1/client.js";

const [summary, status] = ["summary", "status"].map((id) => document.getElementById(id));
try {
  for await (const { type, data } of new StreamClient("/v1").follow(summary.dataset.stream)) {
    if (type === "delta") summary.append(data.text);
    else if (["completed", "failed", "stopped"].includes(type)) summary.dataset.outcome = type;
    if (type === "failed") status.textContent = data.error.user_message;
  }
} catch (error) {
  if (!(error instanceof StreamError)) throw error;
  status.textContent = error.userMessage;
}
