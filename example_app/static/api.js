/** The app's own routes: the conversations, as the server keeps them. */

import { StreamError } from "/v1/client.js";

export const list = async () => (await call("GET", "/conversations")).data;
export const open = (id) => call("GET", path(id));
export const ask = (id, question) => call("POST", id ? `${path(id)}/messages` : "/conversations", question);
export const rename = (id, title) => call("PATCH", path(id), { title });
export const remove = (id) => call("DELETE", path(id));

function path(id) {
  return `/conversations/${encodeURIComponent(id)}`;
}

async function call(method, url, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const response = await fetch(url, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  const answer = await response.json().catch(() => ({})); // 204 has none
  if (response.ok) return answer;
  throw new StreamError(response.status, answer.error?.code, `HTTP ${response.status}`, answer.error?.user_message);
}
