"""The ids of principals: which values can be one."""

from __future__ import annotations

from typing import Any
from uuid import UUID


def is_id(value: Any) -> bool:
    """Whether *value* can be a principal's id, which goes into log lines: a text of 1 to 255 printable characters.

    Line ends, direction marks and invisible characters are not printable.
    """
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable()


def to_id(value: Any) -> str | None:
    """*value* as a principal's id if it is such a text, a whole number or a UUID; `None` for any other value."""
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            value = str(value)
        except ValueError:  # Python does not write numbers of more than 4300 digits
            return None
    return str(value) if is_id(value) else None
