"""What a chat request must be. Unknown members pass untouched; each refusal names the member in `param`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from json import dumps
from typing import Any

from quart_openai_sse.errors import InvalidRequest, UnsupportedMediaType
from quart_openai_sse.protocol import json

ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_THREAD = re.compile(r"[^\x00-\x1f\x7f]{1,255}")

# https://github.com/Kludex/uvicorn/issues/2722. Java's HttpClient offers h2c with each request over plain HTTP.
_LOST = (
    " It has an Upgrade header, and uvicorn with httptools loses the body of such a request. If that is the server,"
    " start it with --http h11, or let the client not offer an upgrade (in Java: HttpClient.Version.HTTP_1_1)."
)


def parse_body(data: bytes, *, content_type: str, upgrade: str = "") -> dict[str, Any]:
    """The JSON object of a request's body. Raises `UnsupportedMediaType` and `InvalidRequest`.

    *upgrade* is the header of that name: an error about a missing body names it as the likely cause.
    """
    # A page of another origin can post text/plain without asking; it can't post application/json.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("The Content-Type must be application/json.")
    if not data:
        raise InvalidRequest(f"The request has no body.{_LOST if upgrade else ''}", code="invalid_json")
    try:
        body = json.decode(data)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def validate(body: Mapping[str, Any], *, default_model: str = "") -> dict[str, Any]:
    """A checked copy of a Chat Completions request, with *default_model* where it names none.

    Raises `InvalidRequest` for what OpenAI's API would refuse; `null` counts as left out, as it does there.
    """
    body = dict(body)
    if body.get("model") is None and default_model:
        body["model"] = default_model
    model = body.get("model")
    if not isinstance(model, str) or not model.strip() or not model.isprintable() or len(model) > 256:
        raise InvalidRequest("model must be a non-empty string of at most 256 printable characters.", param="model")
    _messages(body.get("messages"))
    for member, (allowed, description) in _MEMBERS.items():
        value = body.get(member)
        if value is not None and not allowed(value):
            raise InvalidRequest(f"{member} must be {description}.", param=member)
    include_usage = (body.get("stream_options") or {}).get("include_usage")
    if include_usage is not None and not isinstance(include_usage, bool):
        raise InvalidRequest("include_usage must be a boolean.", param="stream_options.include_usage")
    return body


def digest(body: Mapping[str, Any]) -> str:
    """A fingerprint of *body*, the same for every order of its members. Raises `InvalidRequest` if it is too deep."""
    try:
        text = dumps(body, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    return hashlib.sha256(text.encode()).hexdigest()


def check_idempotency_key(key: str) -> str:
    """*key*, if it is 1 to 255 visible ASCII characters; else raises `InvalidRequest`."""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return key


def check_thread(thread: object) -> str:
    """*thread*, if it is text of 1 to 255 characters, or "" for `None`; else raises `InvalidRequest`."""
    if thread is None:
        return ""
    if not isinstance(thread, str) or not _THREAD.fullmatch(thread):
        raise InvalidRequest("thread must be a string of 1 to 255 characters.", param="thread")
    return thread


def _messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("Each message must be an object.", param=f"messages[{index}]")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidRequest(
                f"A message's role must be one of {', '.join(sorted(ROLES))}.",
                param=f"messages[{index}].role",
            )


Allowed = Callable[[Any], bool]


def _number(low: float, high: float) -> tuple[Allowed, str]:
    return lambda value: _is(value, int, float) and low <= value <= high, f"a number from {low:g} to {high:g}"


def _integer(low: int, high: int | None = None) -> tuple[Allowed, str]:
    limit = f"from {low} to {high}" if high is not None else f"of at least {low}"
    return (
        lambda value: _is(value, int) and low <= value and (high is None or value <= high),
        f"an integer {limit}",
    )


def _kind(description: str, *kinds: type) -> tuple[Allowed, str]:
    return lambda value: _is(value, *kinds), description


def _is(value: object, *kinds: type) -> bool:
    # True is an int to Python, and not to JSON.
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def _stop(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


_MEMBERS: Mapping[str, tuple[Allowed, str]] = {
    "stream": _kind("a boolean", bool),
    "stream_options": _kind("an object", dict),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "n": _integer(1, 128),
    "max_tokens": _integer(1),
    "max_completion_tokens": _integer(1),
    "logprobs": _kind("a boolean", bool),
    "top_logprobs": _integer(0, 20),
    "seed": _kind("an integer", int),
    "stop": (_stop, "a string or a list of strings"),
    "tools": (_objects, "a list of objects"),
    "tool_choice": _kind("a string or an object", str, dict),
    "parallel_tool_calls": _kind("a boolean", bool),
    "response_format": _kind("an object", dict),
    "logit_bias": _kind("an object", dict),
    "user": _kind("a string", str),
}
