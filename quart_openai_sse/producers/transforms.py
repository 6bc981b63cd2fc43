"""Transforms: the app's generators between a producer and the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

Transform = Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]
"""An async generator function `(items, chat)`. It iterates over chunks (mappings) and the app's `Event`s, and yields
the items of the stream: it may hold back, change, add and leave out.

To end the stream it yields a chunk with a `finish_reason` and returns, or raises `StreamStopped` with a reason.
"""
