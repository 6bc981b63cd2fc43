"""Makes foreign text safe to print on a terminal."""

from __future__ import annotations

import re

# Control characters could move the cursor, change the window title or the clipboard; a lone surrogate is not UTF-8.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def safe(text: str) -> str:
    """*text* with a replacement character for each control character and lone surrogate; tabs and newlines stay."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)
