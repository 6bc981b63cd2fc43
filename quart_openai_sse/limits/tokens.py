"""The limit of tokens that a principal may use in a window of time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class TokenBudget:
    """At most *limit* tokens per key and window. A key's window begins with its first use and lasts *window* seconds.

    It reads no clock: every method gets *now*, in seconds of a monotonic clock.
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._spent: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        """The end of each key's window and the tokens spent in it, ordered by that end."""

    def left(self, key: Hashable, now: float) -> int:
        """The tokens that *key* can still spend in its window; negative if it has spent more than the limit."""
        return self.limit - self._window(key, now)[1]

    def resets(self, key: Hashable, now: float) -> float:
        """The seconds until *key*'s window ends and the whole limit is available again."""
        return max(0.0, self._window(key, now)[0] - now)

    def spend(self, key: Hashable, tokens: int, now: float) -> None:
        """Counts *tokens* in *key*'s window. A negative number gives tokens back, never below 0 spent."""
        end, spent = self._window(key, now)
        self._spent[key] = (end, max(0, spent + tokens))
        while self._spent and next(iter(self._spent.values()))[0] <= now:  # the first entry expires first
            self._spent.popitem(last=False)

    def _window(self, key: Hashable, now: float) -> tuple[float, int]:
        end, spent = self._spent.get(key, (0.0, 0))
        if end > now:
            return end, spent
        self._spent.pop(key, None)
        return now + self.window, 0
