"""The members of a chat request: their types, which every server shares, and the ranges of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from quart_openai_sse.errors import InvalidRequest

Schema = dict[str, Any]
"""A JSON Schema."""

ROLE_LENGTH = 64
ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})
"""The roles of OpenAI's API. Other servers have more: llama.cpp, for example, `ipython`."""


def check_messages(messages: object) -> None:
    """Raises `InvalidRequest` unless *messages* is a non-empty list of objects with a role."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("Each message must be an object.", param=f"messages[{index}]")
        role = message.get("role")
        if not isinstance(role, str) or (role not in ROLES and not _is_role(role)):
            raise InvalidRequest(
                f"A message's role must be a non-empty string of at most {ROLE_LENGTH} printable characters.",
                param=f"messages[{index}].role",
            )


def check_members(body: Mapping[str, Any], members: Mapping[str, Schema], *, place: str = "") -> None:
    """Raises `InvalidRequest` for a member of *body* that does not match its schema in *members*."""
    for name, schema in members.items():
        value = body.get(name)
        if value is None:
            continue
        if not _matches(value, schema):
            raise InvalidRequest(f"{name} must be {_description(schema)}.", param=place + name)
        if "properties" in schema:
            check_members(value, schema["properties"], place=f"{place}{name}.")


def check_ranges(body: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for a role or a number that OpenAI's API would refuse, in a *body* whose types are right.

    It is for requests that only OpenAI can answer. Other servers accept more: llama.cpp takes `max_tokens: -1` for no
    limit, and a temperature above 2.
    """
    check_members(body, RANGES)
    for index, message in enumerate(body["messages"]):
        if message["role"] not in ROLES:
            raise InvalidRequest(
                f"A message's role must be one of {', '.join(sorted(ROLES))}.", param=f"messages[{index}].role"
            )


def _is_role(role: str) -> bool:
    return bool(role.strip()) and role.isprintable() and len(role) <= ROLE_LENGTH


def _matches(value: Any, schema: Schema) -> bool:
    types = schema["type"]  # one name, or a list of names; no name is a part of another
    match value:
        case bool():  # an int to Python, and not to JSON
            return "boolean" in types
        case str():
            return "string" in types
        case dict():
            return "object" in types
        case list():
            return "array" in types and all(_matches(item, schema["items"]) for item in value)
        case int() | float():
            typed = "number" in types or ("integer" in types and isinstance(value, int))
            number = isinstance(value, int) or isfinite(value)  # JSON has no NaN, but an app's own body may
            return typed and number and bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return False


def _description(schema: Schema) -> str:
    """The values that *schema* allows, in words: "an integer from 1 to 128"."""
    words = " or ".join(_WORDS[each] for each in schema["type"] if each != "null")
    match schema:
        case {"items": {"type": items}}:
            return f"{words} of {items}s"
        case {"minimum": low, "maximum": high}:
            return f"{words} from {low} to {high}"
        case {"minimum": low}:
            return f"{words} of at least {low}"
    return words


_WORDS = {
    "boolean": "a boolean",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "an object",
}


def _optional(*types: str, **limits: Any) -> Schema:
    return {"type": [*types, "null"], **limits}


MEMBERS: Mapping[str, Schema] = {
    "stream": _optional("boolean"),
    "stream_options": _optional("object", properties={"include_usage": _optional("boolean")}),
    "temperature": _optional("number"),
    "top_p": _optional("number"),
    "presence_penalty": _optional("number"),
    "frequency_penalty": _optional("number"),
    "n": _optional("integer", minimum=1, maximum=128),
    "max_tokens": _optional("integer"),
    "max_completion_tokens": _optional("integer"),
    "logprobs": _optional("boolean"),
    "top_logprobs": _optional("integer"),
    "seed": _optional("integer"),
    "stop": _optional("string", "array", items={"type": "string"}),
    "tools": _optional("array", items={"type": "object"}),
    "tool_choice": _optional("string", "object"),
    "parallel_tool_calls": _optional("boolean"),
    "response_format": _optional("object"),
    "logit_bias": _optional("object"),
    "user": _optional("string"),
}
"""The optional members of a chat request, in the keywords of JSON Schema that the checks above read.

The range of `n` holds for every server: a stream is complete when each of its `n` choices is.
"""

RANGES: Mapping[str, Schema] = {
    "temperature": _optional("number", minimum=0, maximum=2),
    "top_p": _optional("number", minimum=0, maximum=1),
    "presence_penalty": _optional("number", minimum=-2, maximum=2),
    "frequency_penalty": _optional("number", minimum=-2, maximum=2),
    "max_tokens": _optional("integer", minimum=1),
    "max_completion_tokens": _optional("integer", minimum=1),
    "top_logprobs": _optional("integer", minimum=0, maximum=20),
}
"""The members whose range differs between servers, as OpenAI's API limits them."""
