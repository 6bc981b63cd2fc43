"""JSON as bytes: msgspec, and the standard library for the lone surrogates that msgspec refuses."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import msgspec


def decode(data: bytes | bytearray) -> Any:
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
        # As text: from bytes, the standard library would also take UTF-16, a BOM and encoded surrogates.
        return json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def encode(value: object) -> bytes:
    """Compact JSON of *value*. Raises `TypeError` or `ValueError` for what JSON can't say."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        pass
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON") from None
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("Number out of range")
    return number
