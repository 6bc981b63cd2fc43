"""What a shared log stores of a request, so that another process can call `on_end` if this one dies."""

from __future__ import annotations

import json as standard_json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.requests import NESTING

logger = logging.getLogger("quart_openai_sse")

MOST = 1 << 20
"""The most bytes that are stored of one request, compressed."""
_MOST_TEXT = 8 << 20  # bytes that are compressed at most: the event loop waits meanwhile

_MOST_BITS = 8192  # of an integer in metadata: Python converts no text of more than 4,300 digits to an integer

_PRINCIPAL = ("id", "realm", "cookie", "anonymous", "max_streams")
_RECORD = ("thread", "model", "upstream", "trace_id")


@dataclass(frozen=True, kw_only=True)
class StoredRequest:
    """A request that was started by another process."""

    principal: Principal
    body: Mapping[str, Any]
    """After `prepare`, as far as it could be stored."""
    record: StreamRecord


def encode_request(*, principal: Principal, body: Mapping[str, Any], record: StreamRecord) -> bytes:
    """The bytes to store of a request, whose metadata `check_metadata` has accepted.

    If they would be more than `MOST`, the largest members of the body are left out, and a log line says so. So are
    members that JSON does not have: a `prepare` hook can add any object for a model of the app. They are b"" if even
    the principal alone is too large.
    """
    members, left_out = _members(body)
    metadata = _dump(record.metadata)
    models = None if principal.models is None else sorted(principal.models)
    about = {
        "principal": {**{name: getattr(principal, name) for name in _PRINCIPAL}, "models": models},
        "record": {name: getattr(record, name) for name in _RECORD},
    }
    data = _compress(about, metadata, members)
    while data is None:
        if members:
            largest = max(members, key=lambda name: len(members[name]))
            del members[largest]
        elif metadata != "{}":
            largest, metadata = "metadata", "{}"
        else:
            return b""
        left_out.append(largest)
        data = _compress(about, metadata, members)
    if left_out:
        logger.warning(
            "stream %s: %s could not be stored; if this worker dies, on_end is called without them on another one",
            record.id,
            ", ".join(map(repr, left_out)),
        )
    return data


def decode_request(data: bytes, *, stream_id: str) -> StoredRequest:
    """The request of the stream *stream_id*. Unknown members are ignored: another version may have stored it.

    Raises `ValueError` for anything else than what `encode_request` returns.
    """
    try:
        about, metadata, body = zlib.decompress(data).split(b"\n")
        values = standard_json.loads(about)
        principal = values["principal"]
        models = principal.get("models")
        whose = Principal(
            **{name: principal[name] for name in _PRINCIPAL if name in principal},
            models=None if models is None else frozenset(models),
        )
        record = StreamRecord(
            id=stream_id,
            principal=str(whose),
            metadata=standard_json.loads(metadata),
            **{name: values["record"][name] for name in _RECORD if name in values["record"]},
        )
        return StoredRequest(principal=whose, body=json.decode(body), record=record)
    except (zlib.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a stored request") from error


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Checks that metadata is JSON, for a log that other processes read.

    Raises `TypeError` for a value that JSON does not have, and `InvalidRequest` if it is nested too deeply: the app may
    have put a part of a caller's request into it.
    """
    _check("metadata", metadata, 0)


def _check(place: str, value: Any, depth: int) -> None:
    if depth > NESTING:
        raise InvalidRequest(f"The metadata is nested more than {NESTING} levels deep.")
    if isinstance(value, dict):
        for name, member in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{place} has the key {name!r}. {_RULE}")
            _check(f"{place}[{name!r}]", member, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(f"{place}[{index}]", item, depth + 1)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TypeError(f"{place} is an integer of more than {_MOST_BITS} bits.")
    elif value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"{place} is of the type {type(value).__name__}. {_RULE}")


_RULE = (
    "The stream log is shared with other workers, so metadata must be JSON: dict with text as keys, list, str, int, "
    "float, bool, None."
)


def _dump(value: Any) -> str:
    """JSON of metadata and principals. The standard library's has NaN, large numbers and lone surrogates as well."""
    return standard_json.dumps(value, separators=(",", ":"))


def _members(body: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """The members of *body* in JSON, and the names of those that JSON does not have."""
    members, left_out = {}, []
    for name, value in body.items():
        try:
            if not isinstance(name, str):
                raise TypeError
            members[name] = json.encode(value)
        except (TypeError, ValueError, OverflowError):
            left_out.append(name)
    return members, left_out


def _compress(about: Mapping[str, Any], metadata: str, members: Mapping[str, bytes]) -> bytes | None:
    """The three parts, each on a line of its own; `None` if they are too large."""
    body = b",".join(json.encode(name) + b":" + value for name, value in members.items())
    text = b"\n".join((_dump(about).encode(), metadata.encode(), b"{" + body + b"}"))
    if len(text) > _MOST_TEXT:
        return None
    data = zlib.compress(text, 1)
    return data if len(data) <= MOST else None
