"""JSON as bytes: by msgspec, and by the standard library for lone surrogates, which msgspec refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec


def decode(data: bytes | bytearray) -> Any:
    """The value of *data*. Raises `ValueError` for data that is not JSON (NaN, invalid UTF-8) or nested too deeply."""
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except ValueError:
        # A lone "\ud800" is valid JSON (RFC 8259, section 8.2), and browsers send one for half an emoji.
        if b"\\u" not in data:
            raise
    try:
        # As text: from bytes, the standard library would also accept UTF-16, a BOM and encoded surrogates.
        return json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def encode(value: object, *, default: Callable[[Any], Any] | None = None) -> bytes:
    """Compact JSON of *value*. *default* returns what is written in place of an object that JSON does not have.

    Raises `TypeError` or `ValueError` for a value that JSON cannot hold.
    """
    try:
        return msgspec.json.encode(value, enc_hook=default)
    except UnicodeEncodeError:
        pass
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON") from None
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=default).encode()
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("Number out of range")
    return number
