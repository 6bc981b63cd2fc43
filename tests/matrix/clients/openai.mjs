// OpenAI's SDK for JavaScript.
import assert from "node:assert/strict";

import OpenAI from "openai";

import { run, TOOL_PARAMETERS } from "./common.mjs";

const client = (target, apiKey = target.token) => new OpenAI({ baseURL: target.url, apiKey, maxRetries: 0 });

const ask = (target, model, options = {}) =>
  client(target).chat.completions.create({ model, messages: target.messages, stream: true, ...options });

const contentOf = (chunk) => chunk.choices[0]?.delta.content ?? "";

async function text(target) {
  let found = "";
  for await (const chunk of await ask(target, target.model("fast"))) found += contentOf(chunk);
  assert.equal(found, target.answer);
}

async function live(target) {
  const model = target.model("held");
  const found = [];
  for await (const chunk of await ask(target, model)) {
    if (contentOf(chunk)) found.push(contentOf(chunk));
    if (found.length === 1 || found.length === 2) await target.release(model);
  }
  assert.equal(found.join(""), target.answer);
}

async function usage(target) {
  const usages = [];
  for await (const chunk of await ask(target, target.model("fast"), { stream_options: { include_usage: true } })) {
    if (chunk.usage) usages.push(chunk.usage.completion_tokens);
  }
  assert.deepEqual(usages, [target.tokens]);
}

async function whole(target) {
  const completion = await ask(target, target.model("fast"), { stream: false });
  assert.equal(completion.choices[0].message.content, target.answer);
}

async function tool(target) {
  const tools = [{ type: "function", function: { name: "search", parameters: TOOL_PARAMETERS } }];
  const request = { model: target.model("fast"), messages: target.messages, tools };
  const final = await client(target).chat.completions.stream(request).finalChatCompletion();
  const [call] = final.choices[0].message.tool_calls;
  assert.equal(call.function.name, "search");
  assert.deepEqual(JSON.parse(call.function.arguments), { query: target.question });
}

async function auth(target) {
  for (const stream of [true, false]) {
    const request = { model: target.model("fast"), messages: target.messages, stream };
    await assert.rejects(client(target, "wrong").chat.completions.create(request), OpenAI.AuthenticationError);
  }
}

async function model(target) {
  for (const stream of [true, false]) {
    await assert.rejects(ask(target, "missing-model", { stream }), OpenAI.NotFoundError);
  }
}

async function cut(target) {
  const reading = async () => {
    for await (const _ of await ask(target, target.model("cut")));
  };
  await assert.rejects(reading, (error) => error instanceof OpenAI.APIError && error.code === "upstream_truncated");
}

async function leave(target) {
  const model = target.model("held");
  for await (const chunk of await ask(target, model)) if (contentOf(chunk)) break;
  await target.wasCancelled(model);
}

await run({ text, live, usage, whole, tool, auth, model, cut, leave }, ["openai"]);
