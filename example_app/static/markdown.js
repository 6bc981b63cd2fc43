/** Markdown of a model: rendered by marked, and cleaned by DOMPurify of all that is more than text and links. */

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";
import { copyButton } from "./copy.js";

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text)}</p>` : escape(text)), // shown, and not obeyed
    // No image: its address would carry off what the model was made to put there, with nobody clicking anything.
    image: ({ text }) => escape(text || "image"),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6); // below the page's title and the message's
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

const CLEAN = {
  ALLOWED_TAGS: [
    ..."p br hr strong em del code pre blockquote ul ol li a h3 h4 h5 h6 table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start"], // no addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** An element's Markdown. It may grow: only the blocks that differ are made anew, so that nothing flickers. */
export class Markdown {
  #element;
  /** @type {{ key: string, node: Element }[]} */
  #shown = [];

  /** @param {Element} element */
  constructor(element) {
    this.#element = element;
  }

  /** @param {string} text @param {{ growing?: boolean }} [options]  whether there is more to come */
  show(text, { growing = false } = {}) {
    const blocks = htmlOf(text);
    const keys = blocks.map((html, number) => (growing && number === blocks.length - 1 ? `growing ${html}` : html));
    for (const { node } of this.#shown.splice(blocks.length)) node.remove();
    for (const [number, key] of keys.entries()) {
      const before = this.#shown[number];
      if (before?.key === key) continue;
      const node = blockOf(blocks[number], { growing: key !== blocks[number] });
      if (before) before.node.replaceWith(node);
      else this.#element.append(node);
      this.#shown[number] = { key, node };
    }
  }
}

/** A line with a hundred levels of quotes or lists: whether the parser's stack has room for them is chance. */
const TOO_DEEP = /^(?:[ \t]*(?:>|[*+-][ \t]|\d{1,9}[.)][ \t])){100}/m;

/** The HTML of each block, not to be trusted. @param {string} text @returns {string[]} */
function htmlOf(text) {
  try {
    if (TOO_DEEP.test(text)) throw new RangeError();
    return marked.lexer(text).map((token) => marked.parser([token])).filter(Boolean);
  } catch {
    return [`<p>${escape(text)}</p>`]; // nested too deeply
  }
}

/** What may be shown of *html*. @param {string} html @returns {DocumentFragment} */
export function clean(html) {
  return DOMPurify.sanitize(html, CLEAN);
}

/** @param {string} html @param {{ growing: boolean }} options */
function blockOf(html, { growing }) {
  const node = document.createElement("div");
  node.append(clean(html));
  const codes = [...node.querySelectorAll("pre > code")].map((code) => [code, languageOf(code)]);
  for (const each of node.querySelectorAll("[class]")) each.removeAttribute("class"); // those are the page's own
  for (const [code, language] of codes) dressCode(code, language, { growing });
  for (const table of node.querySelectorAll("table")) scrollable(table, "Table");
  for (const link of node.querySelectorAll("a")) dressLink(link);
  node.className = "block";
  return node;
}

function languageOf(code) {
  return /(?:^|\s)language-([\w+#.-]{1,20})(?:\s|$)/.exec(code.className)?.[1] ?? "";
}

/** A bar above the code, with its language and a button that copies it. */
function dressCode(code, language, { growing }) {
  const bar = document.createElement("div");
  const name = document.createElement("span");
  bar.className = "code-bar";
  name.textContent = language || "code";
  bar.append(name);
  const what = language ? `the ${language} code` : "the code";
  if (!growing) bar.append(copyButton(() => code.textContent, `Copy ${what}`));
  const box = document.createElement("div");
  box.className = "code";
  code.parentElement.replaceWith(box);
  box.append(bar, code.parentElement);
  reachable(code.parentElement, language ? `Code in ${language}` : "Code");
}

function scrollable(element, name) {
  const box = document.createElement("div");
  box.className = "table";
  element.replaceWith(box);
  box.append(element);
  reachable(box, name);
}

/** By the keyboard, since it may be wider than the page. */
function reachable(element, name) {
  element.tabIndex = 0;
  element.role = "group";
  element.ariaLabel = name;
}

function dressLink(link) {
  if (!link.href) return link.replaceWith(...link.childNodes); // an address that was cleaned away
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  link.title = link.href; // where it leads, whatever it says
}

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escape(text) {
  return text.replace(/[&<>"']/g, (letter) => ENTITIES[letter]);
}
