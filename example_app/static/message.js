/** One message of the page: a question as plain text, an answer as Markdown that grows. */

import { copyButton } from "./copy.js";
import { Markdown } from "./markdown.js";

const template = document.getElementById("message");

export class Message {
  /** What was written, to the letter. */
  text = "";
  /** How far it is, an answer: "streaming", then "completed", "failed" or "stopped". */
  state = "";

  #markdown;
  #frame = 0;
  #rest = 0;

  /** @param {"user" | "assistant"} role @param {string} [text] */
  constructor(role, text = "") {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.role = role;
    this.#part(".who").textContent = role === "user" ? "You" : "Assistant";
    this.#markdown = role === "assistant" ? new Markdown(this.#part(".text")) : null;
    this.text = text;
    this.#render();
  }

  /** The answer begins. */
  begin() {
    this.#enter("streaming");
    this.element.ariaBusy = "true";
    this.activity("Thinking…");
  }

  /** Adds to it. The page changes with the next frame, however many deltas come until then. */
  write(text = "") {
    this.text += text;
    this.#frame ||= requestAnimationFrame((now) => {
      this.#frame = 0;
      if (now < this.#rest) this.write();
      else this.#render({ growing: true });
    });
  }

  /** Adds to the reasoning, which is folded above the answer. */
  reason(text) {
    this.#part(".thought").append(text);
    this.#part(".reasoning").hidden = false;
  }

  /** What is going on before the first word. */
  activity(text) {
    this.#reveal(".activity", text);
  }

  /** @param {{ title: string, text: string }[]} sources */
  cite(sources) {
    this.#part(".sources").replaceChildren(...sources.map(sourceItem));
    this.#part(".cited").hidden = sources.length === 0;
  }

  /**
   * The answer is over. *note* says why, where that is not plain; *retry* is what the button below it does.
   * @param {"completed" | "failed" | "stopped"} state
   * @param {{ note?: string, retry?: () => void, label?: string }} [options]
   */
  end(state, { note = "", retry, label = "Try again" } = {}) {
    cancelAnimationFrame(this.#frame);
    this.#render();
    this.#enter(state);
    this.element.ariaBusy = null;
    this.activity("");
    this.#reveal(".note", note);
    const again = this.#part(".again");
    again.hidden = !retry;
    again.textContent = label;
    if (retry) again.addEventListener("click", retry);
    if (this.text) this.#part(".actions").prepend(copyButton(() => this.text, "Copy the answer"));
  }

  /** What only the server knows of an answer that is over. */
  complete({ reasoning, sources, note }) {
    this.#reveal(".reasoning", reasoning, ".thought");
    if (sources.length && this.#part(".cited").hidden) this.cite(sources);
    if (note) this.#reveal(".note", note);
  }

  #enter(state) {
    this.state = this.element.dataset.state = state;
  }

  #render(options) {
    const began = performance.now();
    if (this.#markdown) this.#markdown.show(this.text, options);
    else this.#part(".text").textContent = this.text;
    if (this.text) this.activity("");
    const now = performance.now();
    this.#rest = now + 3 * (now - began); // a very long answer leaves the page time for other things
  }

  #reveal(selector, text, inner = selector) {
    this.#part(inner).textContent = text;
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
  item.append(details);
  return item;
}
