"""The tool calls of a delta or a message, in OpenAI's form, whatever form the upstream gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol import json


def calls_of(calls: object) -> list[Mapping[str, Any]]:
    """The tool calls of a delta or a message, in OpenAI's form.

    Servers also send a single call instead of a list, a call without `function`, and arguments that are an object.
    """
    listed = calls if isinstance(calls, list) else [calls]
    return [_call(call) for call in listed if isinstance(call, Mapping)]


def arguments_of(value: object) -> str:
    """The arguments of a call as JSON in a string; servers send them as an object, too."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.encode(value).decode()


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if isinstance(function, Mapping):
        if isinstance(function.get("arguments"), str | None):
            return call
        return {**call, "function": {**function, "arguments": arguments_of(function["arguments"])}}
    if isinstance(call.get("name"), str) or (function is None and "arguments" in call):
        rest = {member: value for member, value in call.items() if member not in ("name", "arguments")}
        name = {"name": call["name"]} if call.get("name") else {}
        return {**rest, "function": {**name, "arguments": arguments_of(call.get("arguments"))}}
    return call
