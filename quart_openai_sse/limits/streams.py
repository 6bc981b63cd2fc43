"""How many streams may run at a time: in all, and for each principal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from quart_openai_sse.errors import TooManyStreams


class Slots:
    """The slots for running streams: *limit* in all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[Hashable] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken.total()

    def take(self, owner: Hashable, *, at_most: int | None) -> None:
        """Takes a slot for *owner*, which may have *at_most* at a time; with `None` only the total limit applies.

        Raises `TooManyStreams`.
        """
        # No await between the check and the increment: two requests cannot take the same slot.
        if self._taken.total() >= self._limit:
            raise TooManyStreams("Too many streams are running.")
        if at_most is not None and self._taken[owner] >= at_most:
            raise TooManyStreams("You have too many streams running.")
        self._taken[owner] += 1

    def give_back(self, owner: Hashable) -> None:
        """Frees a slot of *owner*."""
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
