"""What fills a stream: an upstream, or a model of the app's own."""

from __future__ import annotations

from typing import Protocol

from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.completion import Completion


class Producer(Protocol):
    """Fills one stream. `run` returns when it is complete, raises when it failed, and can be cancelled."""

    upstream: str
    """What the record says of where it comes from."""
    completion: Completion
    cancels_at_once: bool
    """Whether it is over at once when it is cancelled, so that it needs no task of its own."""

    async def run(self, intake: Intake) -> None:
        """Gives everything to *intake*."""
        ...
