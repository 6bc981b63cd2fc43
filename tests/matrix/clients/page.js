// What the checks in a page share.
const checks = {};

async function ask(facts, path, body, { token = facts.token, ...options } = {}) {
  return fetch(facts.url + path, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ messages: facts.messages, ...body }),
    ...options,
  });
}

// Starts a stream that can be resumed, and gives its address, as the server says it.
async function start(facts, name) {
  const response = await ask(facts, "/streams", { model: name });
  if (response.status !== 201) throw new Error(`not started: ${response.status}`);
  return new URL((await response.json()).url, location).href;
}

function stop(facts, url) {
  return fetch(url, { method: "DELETE", headers: { Authorization: `Bearer ${facts.token}` } });
}
