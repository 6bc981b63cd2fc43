"""The simulator's answers: equal for equal requests, divided into tokens, in OpenAI's format."""

from __future__ import annotations

import itertools
import re
import textwrap
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quart_openai_sse.simulator.behaviour import Behaviour

Body = Mapping[str, Any]

MAX_LENGTH = 100_000

TEXT = """\
A stream is the oldest way to send news: a little at a time, in order, and as soon as it is known. \
The Chappe telegraph (1794) did it with wooden arms on hilltops; a sentence left Lille and was read in Paris \
a few minutes later, **sign by sign**, by people who could not yet know how it would end.

Three things make waiting pleasant:
1. something moves at once,
2. it is never taken back,
3. it says clearly when it is over.

In Japanese, a river and its flow are both written with few strokes: 川は流れる。 \
The proverb 「水滴石穿」 says that drops of water pierce a stone, and 한 걸음씩 means "one step at a time". \
Ελληνικά, עברית and हिन्दी travel just as well, since all of it is UTF-8 in the end.

```python
async for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
```

> "The library is open late tonight," said the lighthouse keeper's daughter, "so bring a lamp, \
a pencil and whatever you'd like to read twice."

Naïve cafés charge 3 € for a crème brûlée; the price on the board reads "3,00 €\u00a0", and nobody minds. \
A path such as C:\\temp\\new and a tab\tin the middle belong here as well, because a wire has to carry them.

Emoji are longer than they look: 🌊 is four bytes, 👩\u200d🚀 is three code points holding hands, 🇯🇵 is two \
letters in disguise, and 🏳\ufe0f\u200d🌈 is four of them. Cut anywhere between two tokens, they must come back whole. ✨

Even rarer guests may call: a line separator\u2028that is not a newline, a next-line sign\u0085from the days of \
mainframes, and <b>markup</b> & ampersands that should be shown and not obeyed.

| what arrives | what it means |
|---|---|
| a delta | there is more |
| `finish_reason` | that was all |
| `[DONE]` | you may hang up |

Then the tea is ready, and so are you."""
PARAGRAPHS = TEXT.split("\n\n")

_PIECE = re.compile(r"\s*[A-Za-z0-9']{1,8}|\s*\S|\s+")


def answer(body: Body, choice: int = 0) -> str:
    """The text of the simulator's answer to the request *body*, exactly as a client must receive it."""
    return plan_answer(body, choice).text("content")


def pieces(text: str) -> list[str]:
    """*text* divided into tokens, one for each delta; joined, they are *text*."""
    return _PIECE.findall(text)


@dataclass(frozen=True)
class Plan:
    """One choice of an answer: its deltas after the role, one for each token, and its finish_reason."""

    deltas: list[dict[str, Any]]
    finish_reason: str

    def text(self, member: str) -> str:
        """The texts of *member* in all deltas, joined."""
        return "".join(delta.get(member, "") for delta in self.deltas)


def plan_answer(body: Body, choice: int) -> Plan:
    """Choice number *choice*, counted from 0, of the answer to the request *body*."""
    model = str(body.get("model", ""))
    deltas: list[dict[str, Any]] = []
    if "reasoning" in model:
        thought = f'The question is "{_question(body)}". First think, then answer: よし。'
        deltas += [{"reasoning_content": piece} for piece in pieces(thought)]
    tool = _tool_to_call(body)
    if tool is not None:
        deltas += _tool_deltas(tool, body, choice)
    else:
        deltas += [{"content": piece} for piece in pieces(_until_stop(_text(body, choice), body.get("stop")))]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is not None and len(deltas) > most:
        return Plan(deltas[:most], "length")
    return Plan(deltas, "stop" if tool is None else "tool_calls")


def _text(body: Body, choice: int) -> str:
    question = _question(body)
    start = zlib.crc32(_last(body, "user").encode()) + choice
    opening = f'You asked: "{question}"' if choice == 0 else f'Put differently ({choice + 1}): "{question}"'
    results = list(itertools.takewhile(lambda m: m.get("role") == "tool", reversed(body.get("messages") or [])))
    if results:
        said = "\n\n".join(_content(message) for message in reversed(results))
        return f"{opening}\n\nI called a tool, and it said:\n\n{said}\n\nThat settles it. ☕"
    opening += "\n\nI am a simulator and know nothing, but I can tell you this, a little at a time."
    length = min(int(Behaviour().for_model(str(body.get("model", ""))).length), MAX_LENGTH)
    numbers = range(start, start + 3 + start % 3 + length // 8)  # no paragraph has fewer than 8 pieces
    text = "\n\n".join([opening, *(PARAGRAPHS[number % len(PARAGRAPHS)] for number in numbers)])
    return "".join(pieces(text)[: length or None])


def _question(body: Body) -> str:
    return textwrap.shorten(_last(body, "user"), 120, placeholder=" …") or "…"


def _last(body: Body, role: str) -> str:
    messages = [message for message in body.get("messages") or [] if message.get("role") == role]
    return _content(messages[-1]) if messages else ""


def _content(message: Body) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _until_stop(text: str, stop: str | Sequence[str] | None) -> str:
    stops = [stop] if isinstance(stop, str) else stop or []
    return text[: min((text.find(s) for s in stops if s and s in text), default=len(text))]


def _tool_to_call(body: Body) -> Body | None:
    wanted = body.get("tool_choice")
    messages = body.get("messages") or [{}]
    if wanted == "none" or messages[-1].get("role") != "user":
        return None
    tools = [tool["function"] for tool in body.get("tools") or [] if isinstance(tool.get("function"), dict)]
    if isinstance(wanted, dict):
        name = (wanted.get("function") or {}).get("name")
        tools = [tool for tool in tools if tool.get("name") == name]
    return tools[0] if tools else None


def _tool_deltas(tool: Body, body: Body, choice: int) -> list[dict[str, Any]]:
    given = tool.get("parameters")
    schema = given if isinstance(given, dict) else {}
    value = _example({"type": "object", **schema}, schema, _last(body, "user"))
    arguments = msgspec.json.encode(value).decode()
    call = f"call_{zlib.crc32(f'{choice} {arguments}'.encode()):08x}"
    function = {"name": tool.get("name", ""), "arguments": ""}
    head = {"index": 0, "id": call, "type": "function", "function": function}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in pieces(arguments)]
    return [{"tool_calls": [part]} for part in (head, *rest)]


def _example(schema: Any, root: Body, text: str, depth: int = 8) -> Any:
    """A value that is valid for *schema*: *text* for a string, 1 for a number, the first of several alternatives."""
    if not isinstance(schema, dict):  # the schema `true` accepts any value
        return text
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        schema = {**root.get("$defs", {}), **root.get("definitions", {})}.get(name, {})
    for choices in ("enum", "anyOf", "oneOf", "allOf"):
        if schema.get(choices):
            first = schema[choices][0]
            return first if choices == "enum" else _example(first, root, text, depth - 1)
    if "const" in schema:
        return schema["const"]
    return _example_of_type(schema, root, text, depth)


def _example_of_type(schema: Body, root: Body, text: str, depth: int) -> Any:
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        names = schema.get("properties", {}) if depth > 0 else schema.get("required", ())
        properties = schema.get("properties", {})
        return {name: _example(properties.get(name, {}), root, text, depth - 1) for name in names}
    if kind == "array":
        return [_example(schema.get("items", {}), root, text, depth - 1)] if depth > 0 else []
    return {"number": 1, "integer": 1, "boolean": True, "null": None}.get(kind, text)


def envelope(kind: str, body: Body) -> dict[str, Any]:
    """The members that all chunks of an answer share, or a whole answer has."""
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": body["model"]}


def chunk_choice(index: int, delta: Body, finish_reason: str | None = None) -> dict[str, Any]:
    """A choice as it stands in a chunk."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def interleaved(plans: Sequence[Plan]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The chunk choices of all *plans* in the order of sending: each choice's first, then each choice's second …

    Each comes with its number, for `Behaviour.due`.
    """
    columns = [
        [*(chunk_choice(index, delta) for delta in plan.deltas), chunk_choice(index, {}, plan.finish_reason)]
        for index, plan in enumerate(plans)
    ]
    for tick, row in enumerate(itertools.zip_longest(*columns)):
        yield from ((tick, choice) for choice in row if choice is not None)


def completion(body: Body, plans: Sequence[Plan]) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    choices = [
        {"index": index, "message": _message(plan), "logprobs": None, "finish_reason": plan.finish_reason}
        for index, plan in enumerate(plans)
    ]
    return {**envelope("chat.completion", body), "choices": choices, "usage": total_usage(body, plans)}


def _message(plan: Plan) -> dict[str, Any]:
    message = {"role": "assistant", "content": plan.text("content") or None, "refusal": None}
    calls = [delta["tool_calls"][0] for delta in plan.deltas if "tool_calls" in delta]
    if thought := plan.text("reasoning_content"):
        message["reasoning_content"] = thought
    if calls:
        arguments = "".join(call["function"]["arguments"] for call in calls)
        function = {"name": calls[0]["function"]["name"], "arguments": arguments}
        return {**message, "tool_calls": [{"id": calls[0]["id"], "type": "function", "function": function}]}
    return message


def total_usage(body: Body, plans: Sequence[Plan]) -> dict[str, Any]:
    """The answer's `usage`."""
    prompt = sum(len(pieces(_content(message))) for message in body["messages"])
    completion = sum(len(plan.deltas) for plan in plans)
    reasoning = sum("reasoning_content" in delta for plan in plans for delta in plan.deltas)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**counts, "completion_tokens_details": {"reasoning_tokens": reasoning}}
