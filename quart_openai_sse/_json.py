"""JSON as bytes: msgspec, and the standard library for the lone surrogates that msgspec refuses."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec


def decode(data: bytes) -> Any:
    """The value of *data*. Raises `ValueError` for anything that is not JSON (NaN, bad UTF-8, too deep)."""
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except ValueError:
        # "\ud800" alone is within JSON's grammar, and browsers send it for half an emoji.
        if b"\\u" not in data:
            raise
    try:
        return json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def encode(value: object) -> bytes:
    """Compact JSON of *value*. Raises `TypeError` or `ValueError` for what JSON can't say."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
