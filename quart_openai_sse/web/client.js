/** The browser's side of the stream routes: start a stream, follow it through any number of drops, stop it. */

/**
 * One event of a stream: `delta` ({text, t}), an event of the app's own, and last one of `completed`
 * ({finish_reason, usage}), `failed` ({error}) or `stopped` ({reason}). *data* is parsed if it is JSON.
 * @typedef {{ type: string, data: any, id: string }} StreamEvent
 *
 * @typedef {{ id: string, url: string }} Started
 * @typedef {Started & { thread?: string | null, model?: string, created?: number }} RunningStream
 * @typedef {{ attempt: number, delay: number, error: Error }} Reconnection  *delay* is in milliseconds
 *
 * @typedef {object} ClientOptions
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers]  a function is asked each time
 * @property {(url: string, init: RequestInit) => Promise<Response>} [fetch]  in place of the browser's own
 *
 * @typedef {object} FollowOptions
 * @property {string} [lastEventId]  the last event you have; without it you get the stream from its beginning
 * @property {AbortSignal} [signal]  aborting it ends the loop with the signal's reason
 * @property {() => void} [onopen]  the connection stands, for the first time or again
 * @property {(reconnection: Reconnection) => void} [onreconnect]  the connection is lost, and a wait begins
 *
 * @typedef {AsyncGenerator<StreamEvent, void, void> & { drop(): void }} Following  *drop* cuts the present
 *   connection; the loop goes on, over a new one
 */

const ENDS = new Set(["completed", "failed", "stopped"]);
const RECONNECTION_TIME = 500; // milliseconds, until the server says another (`retry:`)
const LONGEST_DELAY = 10_000;
const LONGEST_SILENCE = 60_000; // the server's heartbeat is far quicker: such a connection is dead
const LONGEST_TIMER = 2 ** 31 - 1; // setTimeout fires at once beyond it

/** The server said no, or (status 0) could not be asked. *userMessage* is a sentence to show to a person. */
export class StreamError extends Error {
  /**
   * @param {number} status @param {string} code @param {string} message @param {string} [userMessage]
   * @param {ErrorOptions} [options]
   */
  constructor(status, code, message, userMessage, options) {
    super(message, options);
    this.name = "StreamError";
    this.status = status;
    this.code = code;
    this.userMessage = userMessage || "Something went wrong. Please try again.";
  }
}

/** Talks to the stream routes below *base*. */
export class StreamClient {
  #base;
  #headers;
  #fetch;

  /**
   * @param {string} [base]  where the routes are, such as `/v1`
   * @param {ClientOptions} [options]
   */
  constructor(base = "/v1", { headers, fetch = (url, init) => globalThis.fetch(url, init) } = {}) {
    this.#base = new URL(base.replace(/\/*$/, "/"), globalThis.location?.href);
    this.#headers = headers;
    this.#fetch = fetch;
  }

  /**
   * Starts a stream. It is never sent twice: after an error it is for you to ask again, best with the same
   * *idempotencyKey*, which then finds the stream that the first request may have started.
   * @param {{ model?: string, messages: object[], thread?: string, [member: string]: unknown }} body
   * @param {{ signal?: AbortSignal, idempotencyKey?: string }} [options]
   * @returns {Promise<Started>}
   */
  async start(body, { signal, idempotencyKey } = {}) {
    /** @type {Record<string, string>} */
    const headers = { "Content-Type": "application/json" };
    if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
    return json(await this.#ask("streams", { method: "POST", headers, body: JSON.stringify(body), signal }));
  }

  /**
   * My streams that still run.
   * @param {{ thread?: string, signal?: AbortSignal }} [options]
   * @returns {Promise<RunningStream[]>}
   */
  async running({ thread, signal } = {}) {
    const query = thread === undefined ? "" : `?${new URLSearchParams({ thread })}`;
    return (await json(await this.#ask(`streams${query}`, { signal }))).data;
  }

  /**
   * Stops a stream for all its readers, who see `stopped`. A stream that has ended already stays as it is.
   * @param {string} url
   * @returns {Promise<void>}
   */
  async stop(url) {
    await this.#ask(url, { method: "DELETE" });
  }

  /**
   * The events of a stream, each once, up to and with its end. A lost connection is resumed for ever, until
   * *signal* aborts or the server gives a definite answer (StreamError). Leaving the loop closes the
   * connection and lets the stream run: to leave is not to stop.
   * @param {string} url
   * @param {FollowOptions} [options]
   * @returns {Following}
   */
  follow(url, options = {}) {
    const connection = new Connection();
    const events = this.#follow(url, options, connection);
    return Object.assign(events, { drop: () => connection.close("dropped") });
  }

  /**
   * @param {string} url @param {FollowOptions} options @param {Connection} connection
   * @returns {AsyncGenerator<StreamEvent, void, void>}
   */
  async *#follow(url, { lastEventId = "", signal, onopen, onreconnect }, connection) {
    const target = new URL(url, this.#base);
    target.searchParams.set("format", "text");
    let reconnectionTime = RECONNECTION_TIME;
    let attempt = 0;
    const abort = () => connection.close("aborted");
    signal?.addEventListener("abort", abort);
    try {
      while (true) {
        signal?.throwIfAborted();
        const decoder = new SSEDecoder(lastEventId);
        try {
          const response = await connection.open((closed) => this.#read(target, lastEventId, closed));
          onopen?.();
          if (response.status === 204) return;
          const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
          for (let bytes; (bytes = await connection.read(reader)); ) {
            for (const event of decoder.feed(bytes)) {
              signal?.throwIfAborted();
              attempt = 0;
              yield { ...event, data: parsed(event.data) };
              if (ENDS.has(event.type)) return;
            }
          }
          throw new ConnectionLost("The answer broke off.");
        } catch (error) {
          signal?.throwIfAborted();
          if (!(error instanceof ConnectionLost)) throw error;
          lastEventId = decoder.lastEventId;
          reconnectionTime = decoder.retry ?? reconnectionTime;
          attempt += 1;
          const delay = Math.max(backOff(reconnectionTime, attempt), error.retryAfter);
          onreconnect?.({ attempt, delay, error });
          await pause(delay, signal);
        }
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      connection.close("left");
    }
  }

  /** One connection's response. @param {URL} url @param {string} lastEventId @param {AbortSignal} signal */
  async #read(url, lastEventId, signal) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (lastEventId) headers["Last-Event-ID"] = lastEventId;
    const response = await this.#send(url, { headers, signal, cache: "no-store" });
    if (mayPass(response))
      throw new ConnectionLost(`HTTP ${response.status}`, { retryAfter: retryAfter(response) });
    if (!response.ok) throw await refusal(response);
    const type = response.headers.get("Content-Type") ?? "";
    if (response.status === 204 || /^text\/event-stream\s*(;|$)/i.test(type)) return response;
    // Over plain HTTP, browsers take a head that was cut off for a whole one, which nothing follows.
    if ("text/event-stream".startsWith(type) && (await response.body?.getReader().read())?.done)
      throw new ConnectionLost("The answer broke off.");
    throw new StreamError(response.status, "not_an_event_stream", `This is no event stream, but "${type}".`);
  }

  /** A request that is sent once. @param {string} url @param {RequestInit} init */
  async #ask(url, init) {
    const response = await this.#send(new URL(url, this.#base), init).catch((error) => {
      if (init.signal?.aborted) throw error;
      const sentence = "The server could not be reached. Please try again.";
      throw new StreamError(0, "connection_failed", String(error), sentence, { cause: error });
    });
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /** @param {URL} url @param {RequestInit} init */
  async #send(url, init) {
    const headers = new Headers(typeof this.#headers === "function" ? await this.#headers() : this.#headers);
    for (const [name, value] of new Headers(init.headers)) headers.set(name, value);
    return this.#fetch(url.href, { ...init, headers });
  }
}

/** Worth another try, unlike anything else that goes wrong. */
class ConnectionLost extends Error {
  /** @param {string} message @param {{ cause?: unknown, retryAfter?: number }} [options] */
  constructor(message, { cause, retryAfter = 0 } = {}) {
    super(message, { cause });
    this.name = "ConnectionLost";
    this.retryAfter = retryAfter;
  }
}

/** The present connection of a loop. Whatever it throws but a StreamError is a ConnectionLost. */
class Connection {
  #controller = new AbortController();

  /** @param {string} why */
  close(why) {
    this.#controller.abort(new ConnectionLost(`The connection was ${why}.`));
  }

  /** @param {(signal: AbortSignal) => Promise<Response>} fetch */
  open(fetch) {
    this.close("replaced");
    this.#controller = new AbortController();
    return this.#within(fetch(this.#controller.signal));
  }

  /** The next bytes, or undefined at the end. @param {ReadableStreamDefaultReader<Uint8Array>} reader */
  async read(reader) {
    return (await this.#within(reader.read())).value;
  }

  /** @template T @param {Promise<T>} promise @returns {Promise<T>} */
  async #within(promise) {
    const timer = setTimeout(() => this.close("silent for too long"), LONGEST_SILENCE);
    try {
      return await promise;
    } catch (error) {
      if (error instanceof StreamError || error instanceof ConnectionLost) throw error;
      throw new ConnectionLost(String(error), { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Bytes in, events out, as the standard says (WHATWG HTML §9.2): any cut of the bytes gives the same events. */
export class SSEDecoder {
  /** The last event ID, as of the last blank line: what to resume from. */
  lastEventId;
  /** The reconnection time in milliseconds, if one came. @type {number | undefined} */
  retry;

  #utf8 = new TextDecoder(); // takes the BOM off
  #line = "";
  #endedInCR = false;
  #type = "";
  #data = "";
  #id;

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /**
   * @param {Uint8Array} bytes
   * @returns {Generator<{ type: string, data: string, id: string }, void, void>}
   */
  *feed(bytes) {
    let text = this.#utf8.decode(bytes, { stream: true });
    if (!text) return;
    if (this.#endedInCR && text.startsWith("\n")) text = text.slice(1); // the other half of a CRLF
    this.#endedInCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0]; // not searched again: many small reads stay linear
    this.#line = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line) this.#field(line);
      else yield* this.#dispatch();
    }
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "event") this.#type = value;
    else if (name === "data") this.#data += value + "\n";
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }

  *#dispatch() {
    const [type, data] = [this.#type, this.#data];
    this.#type = this.#data = "";
    this.lastEventId = this.#id;
    if (data) yield { type: type || "message", data: data.slice(0, -1), id: this.#id };
  }
}

/** Is this an answer that another time could be better? @param {Response} response */
function mayPass({ status, headers }) {
  return (status >= 500 || [408, 425, 429].includes(status)) && headers.get("x-should-retry") !== "false";
}

/** The error that a response tells, in OpenAI's shape or not. @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const { code, message, user_message } = body?.error ?? {};
  return new StreamError(response.status, code ?? "", message ?? `HTTP ${response.status}`, user_message);
}

/** @param {Response} response */
async function json(response) {
  try {
    return await response.json();
  } catch (cause) {
    throw new StreamError(response.status, "not_json", "The answer is not JSON.", undefined, { cause });
  }
}

/** @param {string} data */
function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}

/** Retry-After (seconds or a date) in milliseconds. @param {Response} response */
function retryAfter(response) {
  const value = response.headers.get("Retry-After") ?? "";
  const delay = /^[0-9]+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Math.min(Math.max(delay || 0, 0), LONGEST_TIMER);
}

/**
 * Anywhere between the reconnection time and a limit that doubles, so that readers do not all come back at once.
 * @param {number} reconnectionTime @param {number} attempt
 */
function backOff(reconnectionTime, attempt) {
  const shortest = Math.min(reconnectionTime, LONGEST_DELAY);
  const longest = Math.min(Math.max(shortest, 100) * 2 ** attempt, LONGEST_DELAY); // `retry: 0` may not hammer
  return shortest + Math.random() * (longest - shortest);
}

/**
 * Waits; without a network, for the network, though not for ever: a page from this very machine needs none.
 * @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const waker = new AbortController();
    const wake = () => (waker.abort(), clearTimeout(timer), resolve());
    const offline = globalThis.navigator?.onLine === false;
    const timer = setTimeout(wake, offline ? Math.max(ms, LONGEST_DELAY) : ms);
    if (signal?.aborted) wake();
    signal?.addEventListener("abort", wake, { signal: waker.signal });
    if (offline) globalThis.addEventListener?.("online", wake, { signal: waker.signal });
  });
}
