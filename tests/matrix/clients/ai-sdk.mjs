// The AI SDK, with its provider for servers that are compatible with OpenAI.
import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, streamText, tool as defineTool } from "ai";

import { run, TOOL_PARAMETERS } from "./common.mjs";

function request(target, model, apiKey = target.token) {
  const provider = createOpenAICompatible({ name: "matrix", baseURL: target.url, apiKey, includeUsage: true });
  return { model: provider(model), prompt: target.question, maxRetries: 0 };
}

// A failure is a part of the stream: nothing is raised to who reads the text alone.
async function stream(options) {
  let text = "";
  const errors = [];
  const result = streamText({ ...options, onError: ({ error }) => errors.push(error) });
  for await (const part of result.textStream) text += part;
  return { text, errors, result };
}

async function text(target) {
  const { text, errors } = await stream(request(target, target.model("fast")));
  assert.deepEqual([text, errors], [target.answer, []]);
}

async function live(target) {
  const model = target.model("held");
  const found = [];
  for await (const part of streamText(request(target, model)).textStream) {
    if (part) found.push(part);
    if (found.length === 1 || found.length === 2) await target.release(model);
  }
  assert.equal(found.join(""), target.answer);
}

async function usage(target) {
  const { result } = await stream(request(target, target.model("fast")));
  assert.equal((await result.usage).outputTokens, target.tokens);
}

async function whole(target) {
  assert.equal((await generateText(request(target, target.model("fast")))).text, target.answer);
}

async function tool(target) {
  const search = defineTool({ description: "Searches.", inputSchema: jsonSchema(TOOL_PARAMETERS) });
  const { result } = await stream({ ...request(target, target.model("fast")), tools: { search } });
  const calls = (await result.toolCalls).map(({ toolName, input }) => [toolName, input]);
  assert.deepEqual(calls, [["search", { query: target.question }]]);
}

async function auth(target) {
  await refused(request(target, target.model("fast"), "wrong"), 401);
}

async function model(target) {
  await refused(request(target, "missing-model"), 404);
}

async function refused(options, status) {
  const isRefusal = (error) => APICallError.isInstance(error) && error.statusCode === status;
  await assert.rejects(generateText(options), isRefusal);
  const { errors } = await stream(options);
  assert.deepEqual(errors.map(isRefusal), [true]);
}

async function cut(target) {
  const { errors, result } = await stream(request(target, target.model("cut")));
  assert.equal(errors.length, 1);
  assert.match(String(errors[0].message ?? errors[0]), /ended before its finish_reason/);
  assert.equal(await result.finishReason.then(String, () => "error"), "error");
}

async function leave(target) {
  const model = target.model("held");
  const leaving = new AbortController();
  for await (const _ of streamText({ ...request(target, model), abortSignal: leaving.signal }).textStream) {
    leaving.abort();
  }
  await target.wasCancelled(model);
}

await run({ text, live, usage, whole, tool, auth, model, cut, leave }, ["ai", "@ai-sdk/openai-compatible"]);
