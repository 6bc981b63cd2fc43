// The chat page. A stream belongs to the server: this page follows it, and may leave and come back as it likes.

import { announce } from "./announce.js";
import { sentence } from "./answer.js";
import * as api from "./api.js";
import { Conversation } from "./conversation.js";
import { askForTitle, mayDelete } from "./dialogs.js";
import { followEnd } from "./log.js";
import { setDrawer, showList } from "./sidebar.js";
import { listen, tell, whenLookedAt } from "./tabs.js";

const byId = (id) => document.getElementById(id);
const [messages, welcome, heading, tools, status] = ["messages", "welcome", "title", "tools", "status"].map(byId);
const [form, composer, model] = ["composer-form", "composer", "model"].map(byId);
const [send, stop, drop] = ["send", "stop", "drop"].map(byId);

const LOOK_AGAIN = 3000; // milliseconds, while conversations that nobody here follows are being answered

/** The conversation on the page. @type {Conversation} */
let conversation;
/** The conversations in the list. @type {{ id: string, title: string, answering: boolean }[]} */
let listed = [];
let timer = 0;

const toEnd = followEnd(byId("scroller"), byId("content"), byId("jump"));
byId("jump").addEventListener("click", () => composer.focus()); // the button is gone

// Which conversation -------------------------------------------------------------------------------------------------

/** Shows the conversation of the page's address. */
async function show() {
  conversation?.leave();
  messages.replaceChildren();
  say("");
  const opened = (conversation = new Conversation(/^\/c\/([^/]+)$/.exec(location.pathname)?.[1] ?? "", messages, page));
  opened.title = listed.find(({ id }) => id === opened.id)?.title ?? "";
  showState();
  toEnd();
  void refreshList(); // what was left may be answered meanwhile
  await refresh(opened);
  showState();
}

async function refresh(opened = conversation) {
  try {
    await opened.refresh();
  } catch (error) {
    if (opened !== conversation) return;
    if (error.status === 401) location.assign("/login");
    else if (error.status === 404) leaveDeleted();
    else if (opened.empty) say("The conversation could not be loaded. Please reload the page.", "lost");
  }
}

function go(path) {
  if (path !== location.pathname) history.pushState(null, "", path);
  setDrawer(false);
  void show();
  announce(heading.textContent);
  (matchMedia("(pointer: coarse)").matches ? heading : composer).focus(); // no keyboard over what one came to read
}

function leaveDeleted() {
  history.replaceState(null, "", "/");
  void show();
  say("That conversation was deleted.");
}

addEventListener("popstate", () => void show());

byId("sidebar").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab is the browser's business
  event.preventDefault();
  go(link.pathname);
});

// The list -----------------------------------------------------------------------------------------------------------

async function refreshList() {
  clearTimeout(timer);
  listed = await api.list().catch(() => listed);
  showListed();
  const elsewhere = listed.some(({ id, answering }) => answering && id !== conversation.id);
  clearTimeout(timer);
  if (elsewhere && document.visibilityState === "visible") timer = setTimeout(refreshList, LOOK_AGAIN);
}

function showListed() {
  const here = ({ id, answering }) => (id === conversation.id ? conversation.state === "answering" : answering);
  showList(listed.map((each) => ({ ...each, answering: here(each) })), conversation.id);
}

byId("rename").addEventListener("click", async () => {
  const { id } = conversation;
  const title = await askForTitle(conversation.title);
  if (title) await change(id, () => api.rename(id, title), { changed: id });
});

byId("delete").addEventListener("click", async () => {
  const { id } = conversation;
  if (!(await mayDelete(conversation.title))) return;
  if (await change(id, () => api.remove(id), { deleted: id })) leaveDeleted();
});

/** Whether the server agreed to a change, of which the other tabs are then told. */
async function change(id, request, news) {
  try {
    await request();
  } catch (error) {
    say(sentence(error), "lost");
    return false;
  }
  tell(news);
  void refreshList();
  if (news.changed) void refresh();
  return true;
}

// Other tabs, other devices ------------------------------------------------------------------------------------------

listen(({ changed, deleted, left }) => {
  if (left) return location.assign("/login");
  void refreshList();
  if (changed === conversation.id) void refresh();
  if (deleted === conversation.id) leaveDeleted();
});

whenLookedAt(() => {
  void refreshList();
  void refresh();
});

byId("account").addEventListener("submit", () => tell({ left: true }));

// Asking -------------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = composer.value.trim();
  if (!question || conversation.state !== "idle") return;
  compose("");
  say("");
  void conversation.ask(question, model.value);
  toEnd();
});

composer.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method's Enter; Safari says it by 229
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  form.requestSubmit();
});

composer.addEventListener("input", fitComposer);

document.addEventListener("keydown", (event) => {
  const meantElse = event.defaultPrevented || event.isComposing || event.target.closest("select, dialog");
  if (event.key === "Escape" && !meantElse && conversation.state === "answering") stop.click();
});

stop.addEventListener("click", () => conversation.stop().catch((error) => say(sentence(error), "lost")));
drop.addEventListener("click", () => conversation.drop());

welcome.addEventListener("click", ({ target }) => {
  if (!target.dataset.question) return;
  if (target.dataset.model) chooseModel(target.dataset.model);
  compose(target.dataset.question);
  form.requestSubmit();
});

model.addEventListener("change", () => chooseModel(model.value));

function chooseModel(name) {
  model.value = name;
  if (!model.value) model.selectedIndex = 0;
  sessionStorage.setItem("model", model.value);
}

// Showing ------------------------------------------------------------------------------------------------------------

/** What the conversation tells the page. */
const page = {
  changed: showState,
  asked(asked) {
    const address = `/c/${asked.id}`;
    if (asked === conversation && location.pathname !== address) history.pushState(null, "", address);
    tell({ changed: asked.id });
    void refreshList();
  },
  ended(ended) {
    tell({ changed: ended.id });
    void refreshList();
    void refresh(ended);
  },
  say,
  compose,
};

function showState() {
  const { state, id, empty } = conversation;
  const title = conversation.title || (id ? "Conversation" : "New chat");
  if (heading.textContent !== title) heading.textContent = title;
  document.title = `${title} · quart-openai-sse`;
  const answering = state === "answering";
  const focusIsLost = !answering && [stop, drop].includes(document.activeElement);
  welcome.hidden = !empty || Boolean(id);
  tools.hidden = !id;
  send.disabled = state !== "idle";
  send.hidden = answering;
  stop.hidden = drop.hidden = !answering;
  messages.ariaBusy = String(answering);
  if (focusIsLost) composer.focus();
  showListed();
}

/** The line above the composer. */
function say(text, kind = "") {
  status.textContent = text;
  status.dataset.kind = kind;
}

/** Puts a question into the composer: the page never asks twice by itself. */
function compose(question) {
  composer.value = question;
  fitComposer();
  composer.focus();
}

function fitComposer() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
}

chooseModel(sessionStorage.getItem("model") ?? model.value);
void show();
