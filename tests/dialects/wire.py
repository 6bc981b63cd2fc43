"""Reads what our routes send: server-sent events in both formats, and messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tests.dialects.oracle import COUNTS, IN_DELTA, TOP, Reading, flat, read
from tests.dialects.sample import Frame

OUTCOMES = ("completed", "failed", "stopped")

Seen = dict[str, Any]
"""Members of a `Reading` as one way shows them; a member that it cannot show is missing."""


def frames_of(body: bytes) -> list[Frame]:
    """The events with data in a response."""
    frames = []
    for block in body.split(b"\n\n"):
        lines = [line.partition(b": ") for line in block.split(b"\n") if line and not line.startswith(b":")]
        data = [value for name, _, value in lines if name == b"data"]
        names = [value.decode() for name, _, value in lines if name == b"event"]
        if data:
            frames.append(Frame(block + b"\n\n", b"\n".join(data), names[-1] if names else ""))
    return frames


def openai_seen(status: int, body: bytes) -> Seen:
    """What a client of the OpenAI format sees: with `[DONE]` our streams are complete, and not without it."""
    if status != 200:
        return {"outcome": "failed", "text": ""}
    frames = frames_of(body)
    seen = {**vars(read(frames)), "outcome": "completed" if any(frame.is_done for frame in frames) else "failed"}
    if seen["outcome"] == "failed":  # where the usage would stand, there is an error
        del seen["usage"]
    return seen


def text_seen(status: int, body: bytes) -> Seen:
    """What a client of the `text` format sees."""
    seen: Seen = {"outcome": "failed" if status != 200 else "cut", "text": "", "reasoning": "", "refusal": ""}
    details: dict[str, list[Any]] = {}
    for frame in frames_of(body) if status == 200 else ():
        data = json.loads(frame.data)
        if frame.event == "delta":
            seen["text"] += data["text"]
            seen["refusal"] += data["text"] if data.get("refusal") else ""
        elif frame.event == "reasoning":
            seen["reasoning"] += data["text"]
        elif frame.event == "details":
            for name, values in data.items():
                if isinstance(values, list):
                    known = details.setdefault(name, [])
                    known += [value for value in values if value not in known]
        elif frame.event in OUTCOMES:
            seen |= {"outcome": frame.event, "finish_reason": data.get("finish_reason")}
            if frame.event == "completed":
                seen["usage"] = counts(data.get("usage"))
    return {**seen, "details": details}


def message_seen(message: Mapping[str, Any] | None) -> Seen:
    """What an assistant's message holds."""
    message = message or {}
    refusal = message.get("refusal") or ""
    return {
        "text": flat(message.get("content")) + refusal,
        "refusal": refusal,
        "calls": [_call_seen(call) for call in message.get("tool_calls") or []],
        "message": message,
    }


def _call_seen(call: Any) -> tuple[Any, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    return (function.get("name"), function.get("arguments")) if isinstance(function, Mapping) else (None, call)


def end_seen(end: Any) -> Seen:
    """What `on_end` is given."""
    reasons = list(end.finish_reasons.values())
    return {
        **{name: value for name, value in message_seen(end.message).items() if name != "text"},
        "outcome": end.outcome,
        "text": end.text,
        "reasoning": getattr(end, "reasoning", "(StreamEnd has no reasoning)"),
        "details": getattr(end, "details", "(StreamEnd has no details)"),
        "usage": counts(end.usage),
        "finish_reason": reasons[-1] if reasons else None,
    }


def counts(usage: Any) -> tuple[int, ...] | None:
    """The counts of a usage with its total, which must be there."""
    if usage is None:
        return None
    return tuple(usage.get(name, -1) for name in (*COUNTS, "total_tokens"))


def normalized(message: Mapping[str, Any], sent: Sequence[Frame], details: Collection[str]) -> dict[str, Any]:
    """A message, to be compared with another way's: without *details*, empty members, and ids that nobody sent."""
    raw = b"".join(frame.data for frame in sent)
    kept = {
        name: value
        for name, value in message.items()
        if name not in {*details, *TOP, *IN_DELTA} and value not in _EMPTY
    }
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [_call(call, raw) if isinstance(call, Mapping) else call for call in calls]
    return kept


_EMPTY: tuple[Any, ...] = (None, "", [], {})


def _call(call: Mapping[str, Any], raw: bytes) -> dict[str, Any]:
    was_sent = bool(call.get("id")) and json.dumps(call["id"]).encode() in raw
    return {name: value for name, value in call.items() if name != "id" or was_sent}


def contains(value: Any, wanted: Any) -> bool:
    """Whether *wanted* is *value*, or somewhere within it."""
    if value == wanted:
        return True
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(contains(each, wanted) for each in inner)


__all__ = [
    "Reading",
    "Seen",
    "contains",
    "counts",
    "end_seen",
    "frames_of",
    "message_seen",
    "normalized",
    "openai_seen",
    "text_seen",
]
