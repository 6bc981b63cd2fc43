// What was added to the page: a question starts a stream, and a running answer is found again after a reload.

import { StreamClient, StreamError } from "/v1/client.js";

const client = new StreamClient("/v1");
const [messages, form, question, send, stop, status] =
  ["messages", "ask", "question", "send", "stop", "status"].map((id) => document.getElementById(id));
let url = "";

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const content = question.value.trim();
  if (!content || send.disabled) return;
  send.disabled = true;
  status.textContent = "";
  try {
    const response = await fetch("/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ content }),
    });
    if (response.status === 401) return location.assign("/login");
    const answer = await response.json();
    if (!response.ok) throw new StreamError(response.status, answer.error.code, "", answer.error.user_message);
    question.value = "";
    add("user", content);
    await follow(answer.url);
  } catch (error) {
    complain(error);
  }
  send.disabled = false;
});

stop.addEventListener("click", () => client.stop(url).catch(complain));

async function follow(running) {
  url = running;
  send.disabled = true;
  stop.hidden = false;
  const answer = add("assistant", "");
  try {
    for await (const { type, data } of client.follow(url)) {
      if (type === "delta") answer.querySelector(".text").append(data.text);
      else if (["completed", "failed", "stopped"].includes(type)) answer.dataset.outcome = type;
      if (type === "failed") status.textContent = data.error.user_message;
      if (type === "stopped") status.textContent = "Stopped.";
    }
  } finally {
    stop.hidden = true;
    send.disabled = false;
  }
}

/** A message at the end of the page. What a model writes is text, never HTML. */
function add(role, content) {
  const [message, who, text] = ["div", "b", "p"].map((name) => document.createElement(name));
  message.className = "message";
  message.dataset.role = role;
  who.textContent = role === "user" ? "You" : "Assistant";
  text.className = "text";
  text.textContent = content;
  message.append(who, text);
  messages.append(message);
  return message;
}

function complain(error) {
  status.textContent = error instanceof StreamError ? error.userMessage : "The server could not be reached.";
}

const [running] = await client.running({ thread: messages.dataset.thread }).catch(() => []);
const unanswered = messages.lastElementChild?.dataset.role === "user";
if (running && unanswered) {
  await follow(running.url).catch(complain);
} else if (unanswered && !sessionStorage.getItem("reloaded")) {
  sessionStorage.setItem("reloaded", "once"); // the answer ended after the page was rendered
  location.reload();
} else {
  sessionStorage.removeItem("reloaded");
}
send.disabled = false; // The page has it disabled until the script is ready.
