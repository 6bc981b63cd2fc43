/** One conversation: it shows what the server keeps, follows the answer that is being written, and asks. */

import { StreamClient } from "/v1/client.js";
import { announce } from "./announce.js";
import { sentence, write } from "./answer.js";
import * as api from "./api.js";
import { Message } from "./message.js";

const client = new StreamClient("/v1");

/**
 * What it tells the page.
 * @typedef {object} Page
 * @property {() => void} changed  its title or its state is another
 * @property {(conversation: Conversation) => void} asked  a question was accepted: others may want to know
 * @property {(conversation: Conversation) => void} ended  as of an answer's end
 * @property {(text: string, kind?: string) => void} say  in the line above the composer
 * @property {(question: string) => void} compose  puts a question back, for a person to send
 */

export class Conversation {
  title = "";
  /** Whether there is something to see. */
  empty = true;

  #element;
  #page;
  #loading;
  #asking = false;
  /** The answer being followed. @type {{ url: string, events: { drop(): void } } | null} */
  #answering = null;
  /** The messages on the page: questions by their id, answers by their stream's. */
  #shown = new Map();
  /** Answers that could not be followed to their end, by their stream's id. */
  #lost = new Map();
  #question = "";
  #leave = new AbortController();
  #refreshed = Promise.resolve();

  /** @param {string} id  "" for one that begins with its first question. @param {Element} element @param {Page} page */
  constructor(id, element, page) {
    this.id = id;
    this.#loading = id !== "";
    this.#element = element;
    this.#page = page;
  }

  /** "loading"; "idle": a question can be asked; "asking": the server has it; "answering": an answer is written. */
  get state() {
    if (this.#loading) return "loading";
    return this.#asking ? "asking" : this.#answering ? "answering" : "idle";
  }

  /** The page shows another one. What is being written goes on: to leave is not to stop. */
  leave() {
    this.#leave.abort();
  }

  /** Shows what is kept and is not shown yet, and follows what is being written: after a load, from another tab. */
  refresh() {
    const refreshed = this.#refreshed.catch(() => {}).then(() => this.#refresh());
    this.#refreshed = refreshed;
    return refreshed;
  }

  /** @param {string} content @param {string} model */
  async ask(content, model) {
    const question = this.#add(new Message("user", content));
    this.#question = content;
    this.#enter({ asking: true });
    try {
      const started = await api.ask(this.id, { content, model });
      this.#shown.set(started.question, question);
      Object.assign(this, { id: started.conversation.id, title: started.conversation.title });
      this.#enter({ asking: false });
      this.#page.asked(this);
      if (!this.#left) void this.#follow(started);
    } catch (error) {
      if (this.#left) return this.#page.say(sentence(error), "lost");
      this.#add(new Message("assistant")).end("failed", this.#wayOn(error, content));
      this.#enter({ asking: false });
      if (error.status === 409) void this.refresh().catch(() => {}); // another tab was quicker
    }
  }

  /** For all who follow it: the end arrives as an event, here and in every other tab. */
  async stop() {
    if (this.#answering) await client.stop(this.#answering.url);
  }

  /** Cuts the present connection, which is then resumed. */
  drop() {
    this.#answering?.events.drop();
  }

  get #left() {
    return this.#leave.signal.aborted;
  }

  async #refresh() {
    if (!this.id || this.#asking) return;
    const kept = await api.open(this.id);
    if (this.#left || this.#asking) return;
    this.title = kept.title;
    for (const message of kept.messages) this.#show(message);
    this.#loading = false;
    this.#page.changed();
    if (kept.answering && !this.#shown.has(kept.answering.id)) void this.#follow(kept.answering);
  }

  /** Writes a stream into a message of its own. */
  async #follow({ id, url }) {
    const answer = this.#add(new Message("assistant"));
    this.#shown.set(id, answer);
    const question = this.#question;
    const events = client.follow(url, { signal: this.#leave.signal, ...this.#connection() });
    this.#enter({ answering: { url, events } });
    announce("The assistant is answering.");
    try {
      await write(events, answer, { retry: this.#retry(question) });
    } catch (error) {
      if (this.#left) return; // whoever left goes on from here
      this.#page.say("");
      answer.end("failed", this.#wayOn(error, question));
      if ([404, 410].includes(error.status)) this.#lose(id, answer);
    }
    if (this.#left) return;
    announce(ENDS[answer.state]);
    this.#enter({ answering: null });
    this.#page.ended(this);
  }

  /** The stream is gone, such as after a night's sleep: what the server keeps of it takes its place. */
  #lose(id, answer) {
    this.#shown.delete(id);
    this.#lost.set(id, answer);
  }

  /** What a person is told of a lost connection. */
  #connection() {
    let lost = 0;
    return {
      onreconnect: () => {
        lost += 1;
        this.#page.say("Connection lost, resuming…", "lost");
      },
      onopen: () => {
        if (lost) this.#page.say(lost === 1 ? "Resumed." : `Resumed ${lost} times.`);
      },
    };
  }

  /** A message that the server keeps. */
  #show(kept) {
    const key = kept.stream || kept.id;
    const message = this.#shown.get(key) ?? this.#add(new Message(kept.role, kept.content));
    if (kept.role === "user") this.#question = kept.content;
    else if (!this.#shown.has(key)) this.#end(message, kept);
    if (message.state && message.state !== "streaming") message.complete(kept);
    this.#shown.set(key, message);
    this.#lost.get(key)?.element.remove();
  }

  #end(message, { outcome }) {
    const retry = outcome === "failed" ? this.#retry(this.#question) : undefined;
    message.end(outcome, { note: NOTES[outcome], retry });
  }

  #add(message) {
    this.empty = false;
    this.#element.append(message.element);
    return message;
  }

  /** What went wrong in words, and what can be done about it. */
  #wayOn(error, question) {
    const note = sentence(error);
    if (error.status === 401) return { note, label: "Log in", retry: () => location.assign("/login") };
    return { note, retry: this.#retry(question) };
  }

  #retry(question) {
    return () => this.#page.compose(question);
  }

  #enter({ asking = this.#asking, answering = this.#answering }) {
    this.#asking = asking;
    this.#answering = answering;
    if (!this.#left) this.#page.changed();
  }
}

const NOTES = { failed: "This answer broke off before it was complete.", stopped: "Stopped." };
const ENDS = { completed: "The answer is complete.", stopped: "The answer was stopped.", failed: "The answer failed." };
