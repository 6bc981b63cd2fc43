"""The trace id of what is going on: taken from the request, put on log records, sent upstream."""

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
    """Makes *trace_id* the current one."""
    return _current.set(trace_id)


def reset_trace_id(token: Token[str]) -> None:
    """Undoes `set_trace_id`."""
    _current.reset(token)


def trace_id_from(traceparent: str, x_trace_id: str) -> str:
    """The id in a W3C `traceparent`, else the `X-Trace-ID`, if they are valid; else a new one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match and not (match[1] == "00" and match[3]):  # later versions may have further members
        return match[2]
    if re.fullmatch(TRACE_ID, x_trace_id):
        return x_trace_id
    return secrets.token_hex(16)


class TraceIdFilter(logging.Filter):
    """Puts `trace_id` on every log record. Add it to a handler, and use `%(trace_id)s` in its format."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass; one that has an id keeps it, for it may be handled far from its request."""
        if not hasattr(record, "trace_id"):
            record.trace_id = current_trace_id()
        return True


def install_filter(app_logger: logging.Logger) -> None:
    """Adds `TraceIdFilter` where the records of a request pass: the app's logger, ours, and the root's handlers."""
    ours = [logging.getLogger(f"quart_openai_sse{name}") for name in ("", ".stream", ".response")]
    places: list[logging.Filterer] = [app_logger, *ours, *logging.getLogger().handlers]
    for place in places:
        if not any(isinstance(each, TraceIdFilter) for each in place.filters):
            place.addFilter(TraceIdFilter())
