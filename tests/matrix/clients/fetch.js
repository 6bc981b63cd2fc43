// fetch, with a reader of its body.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.split(/: (.*)/s));
      yield Object.fromEntries(fields.filter(([name]) => name));
    }
  }
}

async function* chunksOf(response) {
  for await (const { data } of eventsOf(response)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
  throw new Error("no [DONE]");
}

const contentOf = (chunk) => chunk.choices?.[0]?.delta.content ?? "";
const chat = (facts, name, more = {}, options = {}) =>
  ask(facts, "/chat/completions", { model: name, stream: true, ...more }, options);

checks.text = async (facts) => {
  let text = "";
  for await (const chunk of chunksOf(await chat(facts, await model("fast")))) text += contentOf(chunk);
  return text;
};

checks.live = async (facts) => {
  const name = await model("held");
  const found = [];
  for await (const chunk of chunksOf(await chat(facts, name))) {
    if (contentOf(chunk)) found.push(contentOf(chunk));
    if (found.length === 1 || found.length === 2) await release(name);
  }
  return found.join("");
};

checks.usage = async (facts) => {
  let usage;
  const response = await chat(facts, await model("fast"), { stream_options: { include_usage: true } });
  for await (const chunk of chunksOf(response)) usage = chunk.usage ?? usage;
  return usage.completion_tokens;
};

checks.whole = async (facts) => {
  const response = await chat(facts, await model("fast"), { stream: false });
  return (await response.json()).choices[0].message.content;
};

checks.auth = async (facts) => String((await chat(facts, await model("fast"), {}, { token: "wrong" })).status);

checks.model = async (facts) => {
  const response = await chat(facts, "missing-model");
  return response.status === 404 ? (await response.json()).error.code : response.status;
};

checks.cut = async (facts) => {
  let last;
  for await (const { data } of eventsOf(await chat(facts, await model("cut")))) last = data;
  return JSON.parse(last).error.code;
};

checks.leave = async (facts) => {
  const name = await model("held");
  const leaving = new AbortController();
  const response = await chat(facts, name, {}, { signal: leaving.signal });
  for await (const chunk of chunksOf(response)) if (contentOf(chunk)) break;
  leaving.abort();
  await wasCancelled(name);
  return "left";
};

const read = (facts, url, after) =>
  fetch(url, { headers: { Authorization: `Bearer ${facts.token}`, ...(after && { "Last-Event-ID": after }) } });

checks.resume = async (facts) => {
  const url = await start(facts, await model("fast"));
  const deltas = [];
  for await (const event of eventsOf(await read(facts, url))) if (event.event === "delta") deltas.push(event);
  const seen = deltas.slice(0, deltas.length / 2);
  for await (const event of eventsOf(await read(facts, url, seen.at(-1).id))) {
    if (event.event === "delta") seen.push(event);
  }
  return seen.map(({ data }) => JSON.parse(data).text).join("");
};

checks.end = async (facts) => {
  const url = await start(facts, await model("fast"));
  let last;
  for await (const event of eventsOf(await read(facts, url))) last = event;
  return (await read(facts, url, last.id)).status === 204 ? "over" : "still there";
};

checks.stop = async (facts) => {
  const name = await model("held");
  const url = await start(facts, name);
  let last;
  for await (const event of eventsOf(await read(facts, url))) {
    last = event.event ?? last;
    if (last === "delta") await stop(facts, url);
  }
  await wasCancelled(name);
  return last;
};
