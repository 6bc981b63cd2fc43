"""The log line of a stream that has ended."""

from __future__ import annotations

import logging
from dataclasses import fields

from quart_openai_sse.observers import StreamRecord

logger = logging.getLogger("quart_openai_sse.stream")

_LOG_FIELDS = [(f"stream_{each.name}", each.name) for each in fields(StreamRecord)]


def log_stream(record: StreamRecord) -> None:
    """Logs the line of a stream that has ended: a warning if it failed. `extra` has its fields as `stream_…`."""
    level = logging.WARNING if record.outcome == "failed" else logging.INFO
    if not logger.isEnabledFor(level):
        return
    first = "-" if record.time_to_first_output is None else f"{record.time_to_first_output:.3f}s"
    logger.log(
        level,
        "stream %s %s%s model=%s chunks=%d bytes=%d first=%s duration=%.3fs",
        record.id,
        record.outcome,
        f" ({record.reason})" if record.reason else "",
        record.model,
        record.chunks,
        record.bytes,
        first,
        record.duration,
        extra={key: getattr(record, name) for key, name in _LOG_FIELDS},
    )
