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
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers]  sent to the origin of *base* only. A
 *   function is called per request; what it throws, the method throws
 * @property {number} [silence]  after how many milliseconds without a byte `follow` takes a connection for lost, by
 *   default 35,000: more than twice the server's `keepalive`. 0 or Infinity: never, for a server whose `keepalive` is 0
 * @property {(url: string, init: RequestInit) => Promise<Response>} [fetch]  instead of the browser's `fetch`
 *
 * @typedef {object} FollowOptions
 * @property {string} [lastEventId]  the id of the last event received; by default the stream is read from its start
 * @property {AbortSignal} [signal]  when it is aborted, the loop throws the signal's reason
 * @property {() => void} [onopen]  called for each connection that is established
 * @property {(reconnection: Reconnection) => void} [onreconnect]  called when a connection is lost, before the delay;
 *   if there was a response, such as a 503, the `cause` of *error* is a StreamError
 *
 * @typedef {AsyncGenerator<StreamEvent, void, void> & { drop(): void }} Following  *drop* closes the current
 *   connection; the loop continues over a new one
 */

const ENDS = new Set(["completed", "failed", "stopped"]);
const RECONNECTION_TIME = 500; // milliseconds, unless the server sends another (`retry:`)
const LONGEST_DELAY = 10_000;
const SILENCE = 35_000; // two comments of the server (`keepalive`, 15 seconds) are missing: the connection is dead
const LONGEST_TIMER = 2 ** 31 - 1; // with a longer delay, setTimeout fires at once

/**
 * Code and sentence by status, for a response of a proxy: only the app's own have them in their body.
 * @type {Record<number, [string, string]>}
 */
const OF_A_PROXY = {
  413: ["request_too_large", "This message is too long for the server. Please shorten it."],
  502: ["bad_gateway", "The server can't be reached at the moment. Please try again in a few seconds."],
  503: ["service_unavailable", "The server is not available at the moment. Please try again later."],
  504: ["gateway_timeout", "The server took too long to answer. Please try again."],
};

/**
 * The server refused the request, or could not be reached (status 0). *code* is for programs, *userMessage* is a
 * sentence for the user, and *retryAfter* is what the server asks to wait for before a retry, in milliseconds (or 0).
 */
export class StreamError extends Error {
  /**
   * @param {number} status @param {string} code @param {string} message @param {string} [userMessage]
   * @param {ErrorOptions & { retryAfter?: number }} [options]
   */
  constructor(status, code, message, userMessage, options) {
    super(message, options);
    this.name = "StreamError";
    this.status = status;
    const [ofAProxy, sentence] = OF_A_PROXY[status] ?? ["", "Something went wrong. Please try again."];
    this.code = code || ofAProxy;
    this.userMessage = userMessage || sentence;
    this.retryAfter = options?.retryAfter ?? 0;
  }
}

/**
 * A client of the stream routes below *base*. A redirect is an error, since `fetch` would follow it with the page's
 * headers. A URL of another origin than *base* is asked without these headers, and without cookies.
 */
export class StreamClient {
  #base;
  #headers;
  #silence;
  #fetch;

  /**
   * @param {string} [base]  the URL prefix of the routes, such as `/v1`
   * @param {ClientOptions} [options]
   */
  constructor(base = "/v1", { headers, silence = SILENCE, fetch = (url, init) => globalThis.fetch(url, init) } = {}) {
    this.#base = new URL(base.replace(/\/*$/, "/"), globalThis.location?.href);
    this.#headers = headers;
    this.#silence = silence;
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
   * Stops a stream; all its readers get the event `stopped`. A stream that has ended is not changed. With *erase* the
   * server also removes what it keeps of the stream. Throws StreamError.
   * @param {string} url
   * @param {{ erase?: boolean }} [options]
   * @returns {Promise<void>}
   */
  async stop(url, { erase = false } = {}) {
    const target = new URL(url, this.#base);
    if (erase) target.searchParams.set("erase", "1");
    await this.#ask(target.href, { method: "DELETE" });
  }

  /**
   * The events of a stream, each once, including its end. After a lost connection the stream is resumed, without
   * a limit of attempts; only *signal*, a refusal of the server (StreamError) or an error of the page's `headers`
   * ends the loop early. Breaking out of the loop closes the connection; the stream goes on running until it is
   * complete or `stop` is called.
   * @param {string} url
   * @param {FollowOptions} [options]
   * @returns {Following}
   */
  follow(url, options = {}) {
    const connection = new Connection(this.#silence);
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
          const closed = connection.begin();
          const headers = await this.#headersFor(target, reading(lastEventId), closed);
          const response = await connection.within(this.#read(target, headers, closed));
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

  /** The response of one connection. @param {URL} url @param {Headers} headers @param {AbortSignal} signal */
  async #read(url, headers, signal) {
    const response = await this.#send(url, { headers, signal, cache: "no-store" });
    if (isTemporary(response)) {
      const cause = await refusal(response);
      throw new ConnectionLost(`HTTP ${response.status}`, { cause, retryAfter: cause.retryAfter });
    }
    if (!response.ok) throw await refusal(response);
    const type = response.headers.get("Content-Type") ?? "";
    const isStream = /^text\/event-stream\s*(;|$)/i.test(type);
    if (response.status === 204 || (isStream && response.body)) return response;
    if (isStream) {
      const message = "The response has no body that can be read as it arrives: this `fetch` does not stream.";
      throw new StreamError(response.status, "no_body", message, "Answers can't be shown in this browser.");
    }
    // If plain HTTP is cut within the headers, browsers take them for complete headers and the body for empty.
    if ("text/event-stream".startsWith(type) && (await response.body?.getReader().read())?.done)
      throw new ConnectionLost("The response ended within its headers.");
    const message = `The response is not an event stream, but "${type}".`;
    throw new StreamError(response.status, "not_an_event_stream", message);
  }

  /** Sends a request once, without retries. @param {string} url @param {RequestInit} init */
  async #ask(url, init) {
    const target = new URL(url, this.#base);
    const headers = await this.#headersFor(target, init.headers, init.signal);
    const response = await this.#send(target, { ...init, headers }).catch((error) => {
      if (init.signal?.aborted) throw error;
      const sentence = "The server could not be reached. Please try again.";
      throw new StreamError(0, "connection_failed", String(error), sentence, { cause: error });
    });
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /**
   * The page's headers, if *url* is theirs to reach, and ours. It throws what the page's function throws: only the page
   * knows what to do then, and another attempt would not help.
   * @param {URL} url @param {HeadersInit} [ours] @param {AbortSignal | null} [signal]
   */
  async #headersFor(url, ours, signal) {
    const given = url.origin === this.#base.origin ? this.#headers : undefined;
    const theirs = typeof given === "function" ? await unlessAborted(Promise.resolve(given()), signal) : given;
    const headers = new Headers(theirs);
    for (const [name, value] of new Headers(ours)) headers.set(name, value);
    return headers;
  }

  /** @param {URL} url @param {RequestInit} init */
  async #send(url, init) {
    /** @type {RequestInit} */
    const elsewhere = url.origin === this.#base.origin ? {} : { credentials: "omit" };
    return this.#fetch(url.href, { ...init, ...elsewhere, redirect: "manual" });
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

/** The current connection of a loop. Every error of a promise within it is a StreamError or a ConnectionLost. */
class Connection {
  #controller = new AbortController();
  #silence;

  /** @param {number} silence */
  constructor(silence) {
    this.#silence = silence;
  }

  /** @param {string} why */
  close(why) {
    this.#controller.abort(new ConnectionLost(`The connection was ${why}.`));
  }

  /** Replaces the connection by a new one; the signal is aborted when that is closed. */
  begin() {
    this.close("replaced");
    this.#controller = new AbortController();
    return this.#controller.signal;
  }

  /** The next bytes, or undefined at the end. @param {ReadableStreamDefaultReader<Uint8Array>} reader */
  async read(reader) {
    return (await this.within(reader.read())).value;
  }

  /** The value of *promise*, unless the connection ends or is silent. @template T @param {Promise<T>} promise */
  async within(promise) {
    const callOff = afterSilence(this.#silence, () => this.close("silent for too long"));
    try {
      return await unlessAborted(promise, this.#controller.signal);
    } catch (error) {
      if (error instanceof StreamError || error instanceof ConnectionLost) throw error;
      throw new ConnectionLost(String(error), { cause: error });
    } finally {
      callOff();
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

/** The headers of a request for a stream. @param {string} lastEventId @returns {Record<string, string>} */
function reading(lastEventId) {
  const headers = { Accept: "text/event-stream" };
  return lastEventId ? { ...headers, "Last-Event-ID": lastEventId } : headers;
}

/** The error of a response that was refused, from its body if that has OpenAI's format. @param {Response} response */
async function refusal(response) {
  const { status } = response;
  // The browser hides the status of a redirect.
  if (response.type === "opaqueredirect" || (status >= 300 && status < 400)) {
    const message = "The response is a redirect, which is not followed.";
    return new StreamError(status, "redirected", message, "You may have been logged out. Please reload the page.");
  }
  const error = (await response.json().catch(() => null))?.error ?? {};
  const [code, message, sentence] = [error.code, error.message, error.user_message].map(text);
  return new StreamError(status, code, message || `HTTP ${status}`, sentence, { retryAfter: retryAfter(response) });
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value : "";
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

/**
 * The value of *promise*, or the reason of *signal* if that is aborted first.
 * @template T @param {Promise<T>} promise @param {AbortSignal | null} [signal] @returns {Promise<T>}
 */
function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/**
 * Calls *done* after *silence* milliseconds, unless the returned function is called before. The timers of a page that
 * slept or is hidden are late, and may come before bytes that have arrived long ago. So a timer is followed by a short
 * one, and if that is late too, by up to two more: the timers of a hidden page are late by up to a minute, all of them.
 * @param {number} silence @param {() => void} done @returns {() => void}
 */
function afterSilence(silence, done) {
  if (!(silence > 0 && silence < Infinity)) return () => {};
  const whole = Math.min(silence, LONGEST_TIMER);
  const short = Math.min(whole / 10, 1000);
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  /** @param {number} ms @param {number} number */
  const wait = (ms, number) => {
    const due = Date.now() + ms;
    timer = setTimeout(() => {
      const late = Date.now() - due > short;
      if (number === 1 || (late && number < 4)) wait(short, number + 1);
      else done();
    }, ms);
  };
  wait(whole - short, 1);
  return () => clearTimeout(timer);
}
