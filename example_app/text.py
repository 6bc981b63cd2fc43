"""Text that people and models write, as a database can keep it."""

from __future__ import annotations


def storable(text: str) -> str:
    """*text* without halves of emoji, which browsers send at times and UTF-8 can't say."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
