/**
 * The browser's client of the stream routes: starts a stream, follows it over any number of connections, stops it.
 * It is one file, longer than others, because pages import it as one module, without a build step.
 */

/**
 * One event of a stream: `delta` or `reasoning` ({text, t}), `details` (such as {citations, t}) or an event of the
 * app, and as the last event `completed` ({finish_reason, usage}), `failed` ({error}) or `stopped` ({reason}). *data*
 * is parsed if it is JSON.
 * @typedef {{ type: string, data: any, id: string }} StreamEvent
 *
 * @typedef {{ id: string, url: string }} Started
 * @typedef {Started & { thread?: string | null, model?: string, created?: number }} RunningStream
 * @typedef {{ attempt: number, delay: number, error: Error }} Reconnection  *delay* is in milliseconds
 *
 * @typedef {object} ClientOptions
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers]  a function is called per request
 * @property {(url: string, init: RequestInit) => Promise<Response>} [fetch]  instead of the browser's `fetch`
 *
 * @typedef {object} FollowOptions
 * @property {string} [lastEventId]  the id of the last event received; by default the stream is read from its start
 * @property {AbortSignal} [signal]  when it is aborted, the loop throws the signal's reason
 * @property {() => void} [onopen]  called for each connection that is established
 * @property {(reconnection: Reconnection) => void} [onreconnect]  called when a connection is lost, before the delay
 *
 * @typedef {AsyncGenerator<StreamEvent, void, void> & { drop(): void }} Following  *drop* closes the current
 *   connection; the loop continues over a new one
 */

const ENDS = new Set(["completed", "failed", "stopped"]);
const RECONNECTION_TIME = 500; // milliseconds, unless the server sends another (`retry:`)
const LONGEST_DELAY = 10_000;
const LONGEST_SILENCE = 60_000; // the server's heartbeat is much shorter: such a connection is dead
const LONGEST_TIMER = 2 ** 31 - 1; // with a longer delay, setTimeout fires at once

/**
 * The server refused the request, or could not be reached (status 0). *code* is for programs, *userMessage* is a
 * sentence for the user.
 */
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

/** A client of the stream routes below *base*. */
export class StreamClient {
  #base;
  #headers;
  #fetch;

  /**
   * @param {string} [base]  the URL prefix of the routes, such as `/v1`
   * @param {ClientOptions} [options]
   */
  constructor(base = "/v1", { headers, fetch = (url, init) => globalThis.fetch(url, init) } = {}) {
    this.#base = new URL(base.replace(/\/*$/, "/"), globalThis.location?.href);
    this.#headers = headers;
    this.#fetch = fetch;
  }

  /**
   * Starts a stream. The request is sent once and never retried: after an error, call `start` again with the same
   * *idempotencyKey*, which finds the stream if the first request has started it. Throws StreamError.
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
   * The user's running streams, optionally those of one *thread*. Throws StreamError.
   * @param {{ thread?: string, signal?: AbortSignal }} [options]
   * @returns {Promise<RunningStream[]>}
   */
  async running({ thread, signal } = {}) {
    const query = thread === undefined ? "" : `?${new URLSearchParams({ thread })}`;
    return (await json(await this.#ask(`streams${query}`, { signal }))).data;
  }

  /**
   * Stops a stream; all its readers get the event `stopped`. A stream that has ended is not changed. Throws
   * StreamError.
   * @param {string} url
   * @returns {Promise<void>}
   */
  async stop(url) {
    await this.#ask(url, { method: "DELETE" });
  }

  /**
   * The events of a stream, each once, including its end. After a lost connection the stream is resumed, without
   * a limit of attempts; only *signal* or a refusal of the server (StreamError) ends the loop early. Breaking out
   * of the loop closes the connection; the stream goes on running until it is complete or `stop` is called.
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
          throw new ConnectionLost("The response ended before the stream did.");
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
      connection.close("no longer needed");
    }
  }

  /** The response of one connection. @param {URL} url @param {string} lastEventId @param {AbortSignal} signal */
  async #read(url, lastEventId, signal) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (lastEventId) headers["Last-Event-ID"] = lastEventId;
    const response = await this.#send(url, { headers, signal, cache: "no-store" });
    if (isTemporary(response))
      throw new ConnectionLost(`HTTP ${response.status}`, { retryAfter: retryAfter(response) });
    if (!response.ok) throw await refusal(response);
    const type = response.headers.get("Content-Type") ?? "";
    if (response.status === 204 || /^text\/event-stream\s*(;|$)/i.test(type)) return response;
    // If plain HTTP is cut within the headers, browsers take them for complete headers and the body for empty.
    if ("text/event-stream".startsWith(type) && (await response.body?.getReader().read())?.done)
      throw new ConnectionLost("The response ended within its headers.");
    const message = `The response is not an event stream, but "${type}".`;
    throw new StreamError(response.status, "not_an_event_stream", message);
  }

  /** Sends a request once, without retries. @param {string} url @param {RequestInit} init */
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

/** The connection failed, or the server asks to retry: `follow` connects again. It gives up after any other error. */
class ConnectionLost extends Error {
  /** @param {string} message @param {{ cause?: unknown, retryAfter?: number }} [options] */
  constructor(message, { cause, retryAfter = 0 } = {}) {
    super(message, { cause });
    this.name = "ConnectionLost";
    this.retryAfter = retryAfter;
  }
}

/** The current connection of a loop. Every error that it throws is a StreamError or a ConnectionLost. */
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

/** Decodes server-sent events (WHATWG HTML §9.2). The events do not depend on how the bytes are divided. */
export class SSEDecoder {
  /** The last event ID as of the last blank line, to resume from. */
  lastEventId;
  /** The reconnection time in milliseconds, if the server sent one. @type {number | undefined} */
  retry;

  #utf8 = new TextDecoder(); // removes the BOM
  #line = "";
  #endedInCR = false;
  #type = "";
  #data = "";
  #id;

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /**
   * The events that *bytes* complete.
   * @param {Uint8Array} bytes
   * @returns {Generator<{ type: string, data: string, id: string }, void, void>}
   */
  *feed(bytes) {
    let text = this.#utf8.decode(bytes, { stream: true });
    if (!text) return;
    if (this.#endedInCR && text.startsWith("\n")) text = text.slice(1); // the other half of a CRLF
    this.#endedInCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0]; // the kept part is not split again: many small reads stay linear
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

/** Whether a retry of the request can succeed. @param {Response} response */
function isTemporary({ status, headers }) {
  return (status >= 500 || [408, 425, 429].includes(status)) && headers.get("x-should-retry") !== "false";
}

/** The error of a response that was refused, from its body if that has OpenAI's format. @param {Response} response */
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
    throw new StreamError(response.status, "not_json", "The response is not JSON.", undefined, { cause });
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
 * A random delay between the reconnection time and a limit that doubles, so that readers do not reconnect all at once.
 * @param {number} reconnectionTime @param {number} attempt
 */
function backOff(reconnectionTime, attempt) {
  const shortest = Math.min(reconnectionTime, LONGEST_DELAY);
  const longest = Math.min(Math.max(shortest, 100) * 2 ** attempt, LONGEST_DELAY); // even with `retry: 0`
  return shortest + Math.random() * (longest - shortest);
}

/**
 * Waits for *ms* milliseconds; if the browser is offline, until it is online, or for LONGEST_DELAY if *ms* is less:
 * a page served from the same machine needs no network.
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
