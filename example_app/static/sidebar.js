/** The list of conversations, and the drawer that it is in on a small screen. */

const list = document.getElementById("conversations");
const none = document.getElementById("no-conversations");
const sidebar = document.getElementById("sidebar");
const menu = document.getElementById("menu");
const main = document.getElementById("main");

/** @param {{ id: string, title: string, answering: boolean }[]} conversations @param {string} current */
export function showList(conversations, current) {
  const focused = list.contains(document.activeElement) ? document.activeElement.pathname : "";
  list.replaceChildren(...conversations.map((conversation) => item(conversation, conversation.id === current)));
  none.hidden = conversations.length > 0;
  if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

function item({ id, title, answering }, current) {
  const element = document.createElement("li");
  const link = document.createElement("a");
  const name = document.createElement("span");
  link.href = `/c/${id}`;
  link.title = title;
  if (current) link.ariaCurrent = "page";
  name.className = "name";
  name.textContent = title;
  link.append(name);
  if (answering) link.append(mark());
  element.append(link);
  return element;
}

function mark() {
  const element = document.createElement("span");
  const words = document.createElement("span");
  element.className = "answering";
  words.className = "unseen";
  words.textContent = ", answering";
  element.append(words);
  return element;
}

/** Opens or closes the drawer. What is behind it can't be reached meanwhile. @param {boolean} open */
export function setDrawer(open) {
  if (isOpen() === open) return;
  sidebar.classList.toggle("open", open);
  menu.ariaExpanded = String(open);
  main.inert = open;
  (open ? sidebar.querySelector("a, button") : menu).focus();
}

function isOpen() {
  return sidebar.classList.contains("open");
}

menu.addEventListener("click", () => setDrawer(!isOpen()));
document.getElementById("backdrop").addEventListener("click", () => setDrawer(false));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !isOpen()) return;
  event.preventDefault(); // it has done its work
  setDrawer(false);
});
matchMedia("(min-width: 50rem)").addEventListener("change", () => setDrawer(false));
