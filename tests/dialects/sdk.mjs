// Reads streams and answers with OpenAI's SDK for JavaScript and with the AI SDK: a job for each on standard input, one
// line of JSON for each on standard output.
import { readFileSync } from "node:fs";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const PATIENCE = 20_000; // milliseconds, for one reading
const AT_ONCE = 8;
const MESSAGES = [{ role: "user", content: "How far is the moon?" }];

const nothing = (value) => value ?? null;

async function openaiStream({ url, token, model }) {
  const client = new OpenAI({ baseURL: url, apiKey: token, maxRetries: 0 });
  const request = { model, messages: MESSAGES, stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await client.chat.completions.create(request)) chunks.push(chunk);
  return { chunks };
}

async function openaiFinal({ url, token, model }) {
  const client = new OpenAI({ baseURL: url, apiKey: token, maxRetries: 0 });
  const request = { model, messages: MESSAGES, stream_options: { include_usage: true } };
  return { final: await client.chat.completions.stream(request).finalChatCompletion() };
}

async function openaiAnswer({ url, token, model }) {
  const client = new OpenAI({ baseURL: url, apiKey: token, maxRetries: 0 });
  return { final: await client.chat.completions.create({ model, messages: MESSAGES }) };
}

// Tools without a function: the AI SDK then reports the calls, and asks for nothing more.
function tools(names) {
  return Object.fromEntries(names.map((name) => [name, tool({ inputSchema: jsonSchema({ type: "object" }) })]));
}

function options({ url, token, model, names }) {
  const provider = createOpenAICompatible({ name: "dialects", baseURL: url, apiKey: token, includeUsage: true });
  return { model: provider(model), prompt: MESSAGES[0].content, maxRetries: 0, tools: tools(names) };
}

function summary(result) {
  const { text, reasoning, calls, finishReason, usage } = result;
  return { text, reasoning, calls, finishReason, usage: [nothing(usage?.inputTokens), nothing(usage?.outputTokens)] };
}

async function aiStream(job) {
  const found = { text: "", reasoning: "", calls: [] };
  const failures = [];
  for await (const part of streamText({ ...options(job), onError() {} }).fullStream) {
    if (part.type === "text-delta") found.text += part.text;
    if (part.type === "reasoning-delta") found.reasoning += part.text;
    if (part.type === "tool-call") found.calls.push([part.toolName, part.input]);
    if (part.type === "error") failures.push(part.error);
    if (part.type === "finish") Object.assign(found, { finishReason: part.finishReason, usage: part.totalUsage });
  }
  if (failures.length) throw failures[0];
  return summary(found);
}

async function aiAnswer(job) {
  const { text, reasoningText, toolCalls, finishReason, usage } = await generateText(options(job));
  const calls = toolCalls.map(({ toolName, input }) => [toolName, input]);
  return summary({ text, reasoning: nothing(reasoningText), calls, finishReason, usage });
}

const READERS = { openaiStream, openaiFinal, openaiAnswer, aiStream, aiAnswer };

async function read(job) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${PATIENCE / 1000} s`)), PATIENCE);
  });
  try {
    return await Promise.race([READERS[job.reader](job), late]);
  } catch (error) {
    return { error: `${error?.name ?? "Error"}: ${error?.message ?? JSON.stringify(error)}`.slice(0, 300) };
  } finally {
    clearTimeout(timer);
  }
}

async function work(jobs) {
  for (let job; (job = jobs.shift()); ) {
    process.stdout.write(`${JSON.stringify({ key: job.key, ...(await read(job)) })}\n`);
  }
}

process.on("unhandledRejection", () => {}); // results of a stream that nobody awaits
console.warn = console.error = () => {};
const jobs = readFileSync(0, "utf8").trim().split("\n").map(JSON.parse);
await Promise.all(Array.from({ length: AT_ONCE }, () => work(jobs)));
