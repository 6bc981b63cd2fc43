"""Producers: an upstream, or a model of the app, fills a stream."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.completeness import Completion

CLEAN_UP = 5.0
"""Seconds that a producer may take to clean up after it is cancelled."""


class Producer(Protocol):
    """Fills one stream. `run` returns when the stream is complete, raises when it failed, and can be cancelled."""

    upstream: str
    """`StreamRecord.upstream` of the stream."""
    completion: Completion
    cancels_at_once: bool
    """Whether `run` ends at once when it is cancelled, so that it needs no task of its own."""

    def run(self, intake: Intake) -> Awaitable[None]:
        """Appends the whole stream to *intake*."""
        ...
