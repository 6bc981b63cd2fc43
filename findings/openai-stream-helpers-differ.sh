#!/usr/bin/env bash
# openai 3.57.0 for Python and openai 7.57.0 for JavaScript: the helpers that put a Chat Completions stream together
# make different messages of the same chunks, where a delta has members that OpenAI's API does not document.
#
# Compatible servers send reasoning as `reasoning_content` in pieces, lists such as `citations` with every chunk, and
# flags. Guessed: both helpers add up strings, and leave flags as they are.
# Expected: one message, whichever helper reads the stream.
# Seen, on Python 3.11.7, Node 20.20.2 and Linux:
#
#   Python adds up whatever it can: strings and lists are joined, and two `true` become the number 2. A second delta
#   with entries of `annotations` raises RuntimeError, because entries of a list must have an `index`; OpenAI's own
#   url_citation entries have none.
#   JavaScript keeps the last delta's value: of the reasoning only the last piece is left.
#
# It also needs Node with npm.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check openai==3.57.0
npm install --silent --no-audit --no-fund openai@7.57.0 >/dev/null

cat >streams.json <<'STREAMS'
{
  "reasoning": [{"role": "assistant", "reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"content": "Yes."}],
  "flag": [{"role": "assistant", "content": "Yes.", "flag": true}, {"flag": true}],
  "citations": [{"role": "assistant", "content": "Yes.", "citations": ["a"]}, {"citations": ["a", "b"]}],
  "annotations": [
    {"role": "assistant", "content": "Yes.", "annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example"}}]},
    {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://b.example"}}]}
  ]
}
STREAMS

cat >helper.py <<'PYTHON'
import json

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

MEMBERS = {"reasoning": "reasoning_content"}

for name, deltas in json.load(open("streams.json")).items():
    state = ChatCompletionStreamState()
    try:
        for delta in [*deltas, {}]:
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            state.handle_chunk(ChatCompletionChunk.model_validate({**head, "choices": [choice]}))
        message = state.get_final_completion().choices[0].message.model_dump()
        print("python", name, json.dumps(message[MEMBERS.get(name, name)]))
    except RuntimeError as error:
        print("python", name, "RuntimeError:", str(error).split(";")[0])
PYTHON

cat >helper.mjs <<'JAVASCRIPT'
import { readFileSync } from "node:fs";
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";

const MEMBERS = { reasoning: "reasoning_content" };

for (const [name, deltas] of Object.entries(JSON.parse(readFileSync("streams.json")))) {
  const head = { id: "c", object: "chat.completion.chunk", created: 1, model: "m" };
  const lines = [...deltas, {}].map((delta) => {
    const choice = { index: 0, delta, finish_reason: Object.keys(delta).length ? null : "stop" };
    return JSON.stringify({ ...head, choices: [choice] }) + "\n";
  });
  const stream = ChatCompletionStream.fromReadableStream(new Blob(lines).stream());
  const { message } = (await stream.finalChatCompletion()).choices[0];
  const value = message[MEMBERS[name] ?? name];
  console.log("javascript", name, name === "annotations" ? `${value.length} of 2` : JSON.stringify(value));
}
JAVASCRIPT

env/bin/python helper.py | tee seen.txt
node helper.mjs | tee -a seen.txt

diff seen.txt - <<'EXPECTED'
python reasoning "Let me see."
python flag 2
python citations ["a", "a", "b"]
python annotations RuntimeError: Expected list delta entry to have an `index` key
javascript reasoning "see."
javascript flag true
javascript citations ["a","b"]
javascript annotations 1 of 2
EXPECTED
