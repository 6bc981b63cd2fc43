"""What is safe to show on a terminal."""

from __future__ import annotations

import re

# Control characters could move the cursor, retitle the window or fill the clipboard; a lone surrogate is not UTF-8.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def safe(text: str) -> str:
    """*text* of somebody else's, with a sign in the place of what is no text."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)
