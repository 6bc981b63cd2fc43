"""How many starts a key has had in a moving window of time, in the memory of this process."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import Lock

SOON = 0.001
"""The least seconds to wait; never 0, which would let the start pass."""


class MemoryWindow:
    """At most *count* starts per key in any *seconds*. The event loops of all threads of the process can share one.

    The `limits` library has such a storage too, but it looks at every key after each start, each in a call of a thread:
    with 100 keys a start costs 6 ms of CPU time, and with 10,000 keys one pass after the other keeps a core busy.
    """

    def __init__(self, count: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._seconds = seconds
        self._clock = clock
        self._starts: OrderedDict[str, deque[float]] = OrderedDict()
        """The times of each key's starts; the key whose last start is the oldest comes first."""
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, key: str) -> float:
        """Counts a start of *key* and returns 0; if there is no room for it, the seconds until there is."""
        with self._lock:
            now = self._clock()
            over = now - self._seconds
            while self._starts and next(iter(self._starts.values()))[-1] <= over:
                self._starts.popitem(last=False)
            starts = self._starts.setdefault(key, deque())
            while starts and starts[0] <= over:
                starts.popleft()
            if len(starts) >= self._count:
                # Rounded, it can be 0, with which the start would pass.
                return max(starts[0] + self._seconds - now, SOON)
            starts.append(now)
            self._starts.move_to_end(key)
            return 0.0
