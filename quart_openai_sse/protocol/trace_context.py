"""The current trace id: read from the request, added to log records, sent upstream."""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar, Token

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
TRACE_ID = r"[A-Za-z0-9._-]{1,64}"
"""A trace id that we send or log, as a regular expression that means the same to Python and to JSON Schema."""

_current: ContextVar[str] = ContextVar("quart_openai_sse_trace_id", default="")


def current_trace_id() -> str:
    """The trace id of the request that is being answered, or ""."""
    return _current.get()


def set_trace_id(trace_id: str) -> Token[str]:
    """Makes *trace_id* the current one, until `reset_trace_id` is called with the token that this returns."""
    return _current.set(trace_id)


def reset_trace_id(token: Token[str]) -> None:
    """Restores the trace id that was current before `set_trace_id` returned *token*."""
    _current.reset(token)


def trace_id_from(traceparent: str, x_trace_id: str) -> str:
    """The trace id of the header `traceparent` (W3C Trace Context, section 3.2), else *x_trace_id*, else a new one.

    A value that is not valid is ignored. A new id has 32 hexadecimal digits.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match and not (match[1] == "00" and match[3]):  # only later versions may have further fields (section 3.2.4)
        return match[2]
    if re.fullmatch(TRACE_ID, x_trace_id):
        return x_trace_id
    return secrets.token_hex(16)


class TraceIdFilter(logging.Filter):
    """Adds `trace_id` to every log record. Add the filter to a handler, and `%(trace_id)s` to its format."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns `True`. A record that has a `trace_id` keeps it, since it may be handled outside its request."""
        if not hasattr(record, "trace_id"):
            record.trace_id = current_trace_id()
        return True
