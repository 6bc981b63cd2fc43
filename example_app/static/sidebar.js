/** The list of conversations, and the drawer that it is in on a small screen. */

const list = document.getElementById("conversations");
const none = document.getElementById("no-conversations");
const sidebar = document.getElementById("sidebar");
const menu = document.getElementById("menu");
const main = document.getElementById("main");

/** The entries by their conversation's id. @type {Map<string, Element>} */
let entries = new Map();

/** @param {{ id: string, title: string, answering: boolean }[]} conversations @param {string} current */
export function showList(conversations, current) {
  entries = new Map(conversations.map(({ id }) => [id, entries.get(id) ?? entry(id)]));
  for (const conversation of conversations) update(entries.get(conversation.id), conversation, current);
  none.hidden = conversations.length > 0;
  // An element that is removed and put back between a press and a release gets no click: nothing moves without need.
  const wanted = [...entries.values()];
  if (wanted.length === list.children.length && wanted.every((each, place) => each === list.children[place])) return;
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...wanted);
  focused?.focus();
}

function entry(id) {
  const element = document.createElement("li");
  const link = document.createElement("a");
  const name = document.createElement("span");
  link.href = `/c/${id}`;
  name.className = "name";
  link.append(name);
  element.append(link);
  return element;
}

function update(element, { id, title, answering }, current) {
  const link = element.firstChild;
  const name = link.firstChild;
  link.title = title;
  link.ariaCurrent = id === current ? "page" : null;
  if (name.textContent !== title) name.textContent = title;
  if (!answering) name.nextSibling?.remove();
  else if (!name.nextSibling) link.append(mark());
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
