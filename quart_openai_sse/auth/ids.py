"""The ids of principals: which values can be one."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID


def is_id(value: Any) -> bool:
    """Whether *value* can be a principal's id, which goes into log lines: a text of 1 to 255 printable characters.

    Line ends, direction marks and invisible characters are not printable. Spaces other than the usual one and the
    joiners between letters and emoji may stand beside printable characters, since names are written with them.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        return False
    if value.isprintable():
        return True
    rest = _WITHIN_NAMES.sub("", value)
    return rest != "" and rest.isprintable()


# The spaces (Zs), as in Japanese names, and the joiners U+200C and U+200D, as in Persian words and in emoji. Python
# counts none of them as printable but U+0020.
_WITHIN_NAMES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u200c\u200d]")


def to_id(value: Any) -> str | None:
    """*value* as a principal's id if it is such a text, a whole number or a UUID; `None` for any other value."""
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            value = str(value)
        except ValueError:  # Python does not write numbers of more than 4300 digits
            return None
    return str(value) if is_id(value) else None
