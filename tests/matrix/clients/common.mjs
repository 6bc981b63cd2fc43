// What the clients on node share: the job on standard input, one line of JSON for each check on standard output.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const PATIENCE = 25_000; // milliseconds, for one check

let number = 0;

class Target {
  // One server, as one check sees it.
  constructor(job, url) {
    const { token, question, answer, tokens } = job;
    Object.assign(this, { url, token, question, answer, tokens, job });
    this.messages = [{ role: "user", content: job.question }];
  }

  // A model that nobody else asks: held, cut or fast.
  model(kind) {
    return `${this.job.model}-${kind}-${this.job.client}-${number++}x`;
  }

  // Lets a held stream go on: it waits after its first and after its second token.
  async release(model) {
    await fetch(`${this.job.control}/release/${model}`, { method: "POST" });
  }

  // Waits until the request upstream has ended, which it must not have done by itself.
  async wasCancelled(model) {
    const response = await fetch(`${this.job.control}/ended/${model}`);
    assert.equal((await response.json()).outcome, "closed_by_peer");
  }
}

export const TOOL_PARAMETERS = { type: "object", properties: { query: { type: "string" } }, required: ["query"] };

export async function run(checks, packages) {
  const job = JSON.parse(readFileSync(0, "utf8"));
  say({ versions: { node: process.versions.node, ...Object.fromEntries(packages.map((name) => [name, version(name)])) } });
  for (const url of job.urls) {
    for (const [check, run] of Object.entries(checks)) {
      say({ url, check, problem: await problem(run, new Target(job, url)) });
    }
  }
  process.exit(0); // whatever a failed check has left open
}

async function problem(check, target) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${PATIENCE / 1000} s`)), PATIENCE);
  });
  try {
    await Promise.race([check(target), late]);
    return "";
  } catch (error) {
    return `${error.name}: ${error.message}`.slice(0, 500);
  } finally {
    clearTimeout(timer);
  }
}

function version(name) {
  const installed = createRequire(import.meta.url).resolve.paths(name)[0];
  return JSON.parse(readFileSync(`${installed}/${name}/package.json`, "utf8")).version;
}

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
