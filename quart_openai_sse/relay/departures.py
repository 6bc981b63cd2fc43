"""The streams that no client reads any more: they are stopped a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque

from quart_openai_sse.relay.running import RunningStream

_FEW = 8  # streams that are stopped in one turn of the event loop


class Departures:
    """Stops streams whose last reader has left.

    When very many clients disconnect at once, other streams do not wait until the producers of all are cancelled.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[RunningStream, int]] = deque()
        """With the number of readers that each has had."""
        self._running = False

    def add(self, stream: RunningStream) -> None:
        """The last reader of *stream* has left, and `linger` is over."""
        self._waiting.append((stream, stream.record.readers))
        if not self._running:
            self._stop_few()

    def _stop_few(self) -> None:
        """Stops a few, and schedules the others for the next iterations of the event loop."""
        few = [self._waiting.popleft() for _ in range(min(len(self._waiting), _FEW))]
        for stream, readers in few:
            if stream.record.readers == readers:  # otherwise another reader has come meanwhile
                stream.interrupt("stopped", "client_left")
        self._running = bool(few)
        if few:
            asyncio.get_running_loop().call_soon(self._stop_few)
