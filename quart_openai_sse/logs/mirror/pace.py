"""How much the store is given in a second."""

from __future__ import annotations

import asyncio

_RATE, _BURST = 12_000.0, 1_200.0  # what the store is given in a second, and at once before that limit counts
_WORK = 80  # what a call takes of it: as much as so many streams in it


class Pace:
    """Counts the calls of the store that write, and the streams in them."""

    def __init__(self) -> None:
        self._left = _BURST
        """What the store may be given at once: a part for each call, and one for each stream."""
        self._counted = 0.0

    async def wait(self) -> None:
        """Waits if the store was given much lately. Meanwhile there is more to write: it costs less in one call."""
        now = asyncio.get_running_loop().time()
        self._left = min(_BURST, self._left + (now - self._counted) * _RATE)
        self._counted = now
        if self._left < 0:
            await asyncio.sleep(-self._left / _RATE)

    def count(self, streams: int) -> None:
        """Counts a call that writes so many *streams*."""
        self._left -= _WORK + streams
