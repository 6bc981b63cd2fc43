// The chat page. A stream belongs to the server: this page follows it, and may leave and come back as it likes.

import { StreamClient, StreamError } from "/v1/client.js";

const client = new StreamClient("/v1");
const [scroller, messages, welcome, template] = ["scroller", "messages", "welcome", "message"].map(byId);
const [composer, model, send, stop, drop, newChat, status] =
  ["composer", "model", "send", "stop", "drop", "new-chat", "status"].map(byId);

/** The conversation's name, by which its running answer is found again. */
let thread = "";
/** The last question: a failed answer offers it again. */
let question = "";
/** The answer being followed: {url, events, leave}, or null. */
let current = null;
/** "idle": a question can be asked; "busy": the server is being asked; "following": an answer is being written. */
let phase = "busy";

// What a person does ------------------------------------------------------------------------------------------------

byId("composer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = composer.value.trim();
  if (asked && phase === "idle") void ask(asked);
});

composer.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method's Enter; 229 is Safari's way to say so
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  byId("composer-form").requestSubmit();
});

composer.addEventListener("input", fitComposer);

stop.addEventListener("click", async () => {
  try {
    await client.stop(current.url); // the answer's end arrives as an event, here and in every other tab
  } catch (error) {
    say(sentence(error), "lost");
  }
});

drop.addEventListener("click", () => current.events.drop());

newChat.addEventListener("click", async () => {
  const left = current;
  left?.leave.abort();
  enter("busy");
  try {
    if (left) await client.stop(left.url).catch(() => {}); // it may have ended by itself
    ({ thread } = await call("/reset", { method: "POST" }));
    question = "";
    messages.replaceChildren();
    welcome.hidden = false;
    say("");
    composer.focus();
  } catch (error) {
    say(sentence(error), "lost");
  }
  enter("idle");
});

model.value = sessionStorage.getItem("model") ?? model.value;
if (!model.value) model.selectedIndex = 0;
model.addEventListener("change", () => sessionStorage.setItem("model", model.value));

// Asking and following ----------------------------------------------------------------------------------------------

/** Shows the conversation so far and, if an answer is being written, that answer from its first letter. */
async function load() {
  try {
    ({ thread } = await call("/messages"));
    // In this order: an answer that ends in between is then among the messages.
    const [running] = await client.running({ thread });
    const past = (await call("/messages")).messages;
    for (const { role, content, outcome, note, sources } of past) {
      const message = new Message(role, content);
      if (role === "user") question = content;
      if (sources?.length) message.cite(sources);
      if (role === "assistant") message.end(outcome, note ?? PAST_NOTES[outcome], question);
    }
    welcome.hidden = past.length > 0;
    scroller.scrollTop = scroller.scrollHeight;
    if (running && past.at(-1)?.role !== "assistant") void follow(running.url);
    else enter("idle");
  } catch (error) {
    if (error.status === 401) location.assign("/login");
    say("The conversation could not be loaded. Please reload the page.", "lost");
  }
}

async function ask(content) {
  composer.value = "";
  fitComposer();
  say("");
  welcome.hidden = true;
  question = content;
  new Message("user", content);
  scroller.scrollTop = scroller.scrollHeight;

  enter("busy");
  try {
    const { url } = await call("/messages", post({ model: model.value, content }));
    void follow(url);
  } catch (error) {
    new Message("assistant").end("failed", sentence(error), content);
    enter("idle");
  }
}

/** Writes a stream into an answer of its own, to its end. */
async function follow(url) {
  const answer = new Message("assistant");
  const leave = new AbortController();
  let resumed = 0;
  const events = client.follow(url, {
    signal: leave.signal,
    onreconnect: () => {
      resumed += 1;
      say("Connection lost, resuming…", "lost");
    },
    onopen: () => {
      if (resumed) say(resumed === 1 ? "Resumed." : `Resumed ${resumed} times.`);
    },
  });
  current = { url, events, leave };
  answer.stream();
  enter("following");
  try {
    for await (const { type, data } of events) {
      if (type === "delta") answer.write(data.text);
      else if (type === "status") answer.show(data.text);
      else if (type === "sources") answer.cite(data);
      else if (type === "completed") answer.end(type, FINISH_NOTES[data.finish_reason]);
      else if (type === "failed") answer.end(type, data.error.user_message || data.error.message, question);
      else if (type === "stopped") answer.end(type, "Stopped.");
    }
  } catch (error) {
    if (leave.signal.aborted) return; // whoever left goes on from here
    say("");
    answer.end("failed", sentence(error), question);
  }
  enter("idle");
}

function post(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

/** A JSON route of this app. */
async function call(path, init) {
  const response = await fetch(path, init);
  const status = new URL(response.url).pathname === "/login" ? 401 : response.status; // or it sent us there
  if (status === 401) throw new StreamError(status, "", path, "Please log in.");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new StreamError(status, body.error?.code, path, body.error?.user_message);
  return body;
}

// Showing -----------------------------------------------------------------------------------------------------------

const FINISH_NOTES = {
  length: "The answer was cut off at the length limit.",
  content_filter: "The answer was cut off by the content filter.",
};
const PAST_NOTES = {
  failed: "This answer broke off before it was complete.",
  stopped: "Stopped.",
};

/** One message of the page. What a model writes is put in as text, never as HTML. */
class Message {
  #waiting = "";
  #frame = 0;

  constructor(role, content = "") {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.role = role;
    this.#part(".who").textContent = role === "user" ? "You" : "Assistant";
    messages.append(this.element);
    this.write(content);
    this.#flush();
  }

  stream() {
    this.element.dataset.state = "streaming";
    scrollAlong(() => {});
  }

  /** Adds text with the next frame, so that a long answer costs one change of the page per frame. */
  write(text = "") {
    this.#waiting += text;
    this.#frame ||= requestAnimationFrame(() => this.#flush());
  }

  /** What is going on before the answer begins. */
  show(text) {
    scrollAlong(() => this.#reveal(".activity", text));
  }

  cite(sources) {
    scrollAlong(() => {
      this.#part(".sources").replaceChildren(...sources.map(sourceItem));
      this.#part(".cited").hidden = sources.length === 0;
    });
  }

  end(state, note = "", question = "") {
    this.#flush();
    this.element.dataset.state = state;
    this.#part(".text").normalize();
    scrollAlong(() => {
      this.#reveal(".activity", "");
      this.#reveal(".note", note);
      const again = this.#part(".again");
      again.hidden = state !== "failed" || !question;
      again.onclick = () => compose(question);
    });
  }

  #flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (!this.#waiting) return;
    scrollAlong(() => {
      this.#reveal(".activity", "");
      this.#part(".text").append(this.#waiting);
      this.#waiting = "";
    });
  }

  #reveal(selector, text) {
    this.#part(selector).textContent = text;
    this.#part(selector).hidden = !text;
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }
}

function sourceItem({ title, text }) {
  const item = document.createElement("li");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const passage = document.createElement("p");
  summary.textContent = title;
  passage.textContent = text;
  details.append(summary, passage);
  details.addEventListener("toggle", () => details.open && item.scrollIntoView({ block: "nearest" }));
  item.append(details);
  return item;
}

/** Changes the page, and keeps its end in view for a reader who was there. */
function scrollAlong(change) {
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  change();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

/** The line above the composer. */
function say(text, kind = "") {
  status.textContent = text;
  status.dataset.kind = kind;
}

function sentence(error) {
  return error instanceof StreamError ? error.userMessage : "The server could not be reached. Please try again.";
}

/** Puts a question back for a person to send: the page never asks twice by itself. */
function compose(question) {
  composer.value = question;
  fitComposer();
  composer.focus();
}

function fitComposer() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
}

function enter(next) {
  phase = next;
  const following = phase === "following";
  if (!following) current = null;
  const focusIsLost = !following && [stop, drop].includes(document.activeElement);
  send.disabled = phase !== "idle";
  newChat.disabled = phase === "busy";
  send.hidden = following;
  stop.hidden = drop.hidden = !following;
  messages.setAttribute("aria-busy", String(following)); // read out when complete, not letter by letter
  if (focusIsLost) composer.focus();
}

function byId(id) {
  return document.getElementById(id);
}

void load();
