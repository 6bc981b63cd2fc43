"""An upstream's events: those of the standard, and the errors that upstreams report beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.parsing import DONE, error_in
from quart_openai_sse.protocol.sse import BOM, RawEvent, SSEDecoder
from quart_openai_sse.protocol.upstream_errors import reported_error

_FIELDS = (b"data", b"event", b"id", b"retry", b"")  # b"": a comment
_BEGINNING = re.compile(rb"\A(?:%b|[ \t\r\n])*" % BOM)


class UpstreamDecoder(SSEDecoder):
    """Decodes an upstream's bytes as `SSEDecoder` does, and returns as data also the errors that are not data.

    They are an event named `error`, whose data may be flat or text; a field named `error` (llama.cpp); and JSON without
    a field name. Each becomes the data of an event, of which `reported_error` finds the error. The body may begin with
    BOMs and white space.
    """

    # Here and not in `__init__`, which would be one more call for each stream.
    _known = False
    _strange = False
    _unknown: list[bytes] | None = None
    """The lines of the current block that the standard ignores."""

    @property
    def is_document(self) -> bool:
        """Whether there was text, and no line of an event stream outside of those events that `feed_data` returned."""
        return self._strange and not self._known

    def feed_raw(self, data: bytes) -> list[RawEvent]:
        """The events that *data* completes, undecoded."""
        if self._first_line and self._tail_size < len(BOM):  # the tail may be the first part of a BOM
            data = b"".join((*self._tail, data))
            self._tail, self._tail_size = [], 0
            data = _BEGINNING.sub(b"", data, count=1)
        return super().feed_raw(data)

    def end(self) -> list[bytes]:
        """The errors in what is left over at the end of the body, which has cut a block. Other events are discarded."""
        line = b"".join(self._tail)
        if self._broken:
            return []
        if line and not any(field.startswith(line) for field in _FIELDS):
            self._field(line)
        if self._event.lower() != b"error" and find_error(b"\n".join(self._data)) is None:
            self._data = []
        events: list[RawEvent] = []
        self._dispatch(events)
        return [event.data for event in events]

    def _field(self, line: bytes) -> None:
        super()._field(line)
        if line.partition(b":")[0] in _FIELDS:
            self._known = True
        elif line.strip():
            self._strange = True
            if self._unknown is None:
                self._unknown = []
            self._unknown.append(line)

    def _dispatch(self, events: list[RawEvent]) -> None:
        name, unknown, before = self._event, self._unknown, len(events)
        self._unknown = None
        super()._dispatch(events)
        if name.lower() == b"error":
            data = events.pop().data if len(events) > before else b""
            events.append(RawEvent(_reporting(data), name, self._id))
        if unknown:
            events.extend(RawEvent(data, b"error", self._id) for data in _errors(unknown))


def find_error(data: bytes) -> Any:
    """The error that the JSON *data* reports, or `None`."""
    try:
        return error_in(json.decode(data))
    except ValueError:
        return None


def _errors(lines: list[bytes]) -> list[bytes]:
    """The errors in the lines of one block that have none of the standard's fields."""
    errors, others = [], []
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"error":
            errors.append(_reporting(value))
        else:
            others.append(line)
    # JSON may be one line of several, or extend over all of them.
    for text in (b"\n".join(others), *(others if len(others) > 1 else ())):
        if text.lstrip().startswith((b"{", b"[")) and find_error(text) is not None:
            return [*errors, text]
    return errors


def _reporting(data: bytes) -> bytes:
    """*data*, which is an error because of its event's or field's name, as an object that says so itself."""
    data = data.strip()
    value: Any = data.decode("utf-8", "replace")
    try:
        value = json.decode(data)
    except ValueError:
        if data == DONE or data.startswith((b"{", b"[")):  # broken JSON is no sentence
            value = None
    if reported_error(value) is not None:
        return data
    # Members beside the error, such as `usage`, stay where they are looked for.
    members = value if isinstance(value, Mapping) else {}
    return json.encode({**members, "error": value or {"message": ""}})
