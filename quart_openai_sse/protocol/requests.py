"""The checks of a chat request, and its limits, which the OpenAPI document states too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from json import dumps
from sys import getsizeof
from typing import Any

from quart_openai_sse.errors import InvalidRequest, UnsupportedMediaType
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.members import MEMBERS, check_members, check_messages

# Limits that the OpenAPI document states too. The patterns mean the same to Python and to JSON Schema.
MODEL_LENGTH = 256
THREAD_LENGTH = KEY_LENGTH = 255
# No control characters, no line ends (U+0085, U+2028, U+2029) and no marks that change the direction of a text, since
# an app shows and logs it.
THREAD_PATTERN = rf"^[^\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]{{1,{THREAD_LENGTH}}}$"
STREAM_ID_PATTERN = "^[0-9a-f]{32}$"
_MOST_VALUES = 1_000_000
NESTING = 100
"""How deeply a request may be nested: far less than the recursion of encoders, and of an app's own code, allows."""
KEY_PATTERN = f"^[!-~]{{0,{KEY_LENGTH}}}$"  # an empty header counts as no header

# https://github.com/Kludex/uvicorn/issues/2722. Java's HttpClient offers h2c with each request over plain HTTP.
_LOST = (
    " It has an Upgrade header, and uvicorn with httptools loses the body of such a request. If that is your server,"
    " start it with --http h11, or configure the client to offer no upgrade (in Java: HttpClient.Version.HTTP_1_1)."
)


def parse_body(data: bytes, *, content_type: str, upgrade: str = "") -> dict[str, Any]:
    """The JSON object in *data*, the body of a request.

    *content_type* and *upgrade* are the request's headers, or "". Raises `UnsupportedMediaType` unless the type is
    `application/json`, and `InvalidRequest` for anything that is not a JSON object.
    """
    # A page of another origin can post text/plain without a CORS preflight (Fetch, section 2.2.2), but not JSON.
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
    if data.count(b"{") + data.count(b"[") > NESTING:  # otherwise it can't be nested more deeply
        check_nesting(body)
    return body


def validate(body: Mapping[str, Any], *, default_model: str = "") -> dict[str, Any]:
    """A checked copy of *body*, a Chat Completions request; a missing `model` becomes *default_model*.

    Unknown members pass unchanged. A member that is `null` counts as missing, as in OpenAI's API.
    Raises `InvalidRequest`, whose `param` names the member, for a member of another type than in OpenAI's API. Ranges
    are not checked, because they differ between servers: see `check_ranges`.
    """
    body = dict(body)
    if body.get("model") is None and default_model:
        body["model"] = default_model
    model = body.get("model")
    if not isinstance(model, str) or not model.strip() or not model.isprintable() or len(model) > MODEL_LENGTH:
        raise InvalidRequest(
            f"model must be a non-empty string of at most {MODEL_LENGTH} printable characters.", param="model"
        )
    check_messages(body.get("messages"))
    check_members(body, MEMBERS)
    return body


def json_size(data: bytes) -> int:
    """About the bytes of memory that the value of *data*, which is JSON, takes.

    It counts characters, which is a hundred times as fast as looking at each value.
    """
    width = 1  # bytes for each character of the longest text
    if _WIDE.search(data) or b"\\u" in data:
        width = 4
    elif not data.isascii():
        width = 2
    containers = data.count(b"{") * _OBJECT + data.count(b"[") * _LIST
    return containers + data.count(b",") * _VALUE + len(data) * width


_WIDE = re.compile(rb"[\xf0-\xf4]")  # the first byte of a character beyond U+FFFF in UTF-8
_OBJECT, _LIST, _VALUE = 232, 88, 56  # bytes: an object of one member, a list of one item, one more of either


def body_size(body: Mapping[str, Any]) -> int:
    """About the bytes of memory that *body* takes. Raises what `check_nesting` raises."""
    size = getsizeof(body)
    for level in _levels(body):
        for each in level:
            size += sum(map(getsizeof, _members(each)))
            if isinstance(each, dict):
                size += sum(map(getsizeof, each))  # the names
    return size


def check_nesting(body: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for a body that is nested more deeply than `NESTING`.

    It does so too for more than a million objects and lists on one level: an app's own body may contain itself.
    """
    for _ in _levels(body):
        pass


def _levels(body: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The objects and lists of each level."""
    level: list[Any] = [dict(body)]
    for _ in range(NESTING):
        yield level
        level = [member for each in level for member in _members(each) if isinstance(member, dict | list | tuple)]
        if not level:
            return
        if len(level) > _MOST_VALUES:
            raise InvalidRequest("The body has too many objects and lists.", code="invalid_json")
    raise InvalidRequest(f"The body is nested more than {NESTING} levels deep.", code="invalid_json")


def _members(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def digest(body: Mapping[str, Any]) -> str:
    """The SHA-256 of *body* in hexadecimal digits, the same for all ways to write one request.

    The order of members does not count, and neither do those that are `null`, nor a `stream` that is `false`.
    Raises `InvalidRequest` for a body that is nested too deeply.
    """
    members = {name: value for name, value in body.items() if value is not None and (name != "stream" or value)}
    try:
        text = dumps(members, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    return hashlib.sha256(text.encode()).hexdigest()


def check_idempotency_key(key: str) -> str:
    """Returns *key* if it is 1 to 255 visible ASCII characters. Raises `InvalidRequest` otherwise."""
    if not key or not re.fullmatch(KEY_PATTERN, key):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {KEY_LENGTH} visible ASCII characters.", param="Idempotency-Key"
        )
    return key


def check_thread(thread: object) -> str:
    """Returns *thread* if it is a string of 1 to 255 characters, and "" for `None`.

    Raises `InvalidRequest` otherwise, and for control characters, line ends, direction marks and halves of a character.
    """
    if thread is None:
        return ""
    if not isinstance(thread, str) or not re.fullmatch(THREAD_PATTERN, thread) or _HALF.search(thread):
        raise InvalidRequest(
            f"thread must be a string of 1 to {THREAD_LENGTH} characters without line ends, control characters and "
            "direction marks.",
            param="thread",
        )
    return thread


_HALF = re.compile("[\ud800-\udfff]")  # JSON can hold half an emoji; a store that keeps UTF-8 cannot
