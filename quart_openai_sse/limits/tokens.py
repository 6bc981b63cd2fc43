"""The limit of tokens that a principal may use in a window of time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class TokenBudget:
    """At most *limit* tokens per key and window. A key's window begins with its first use and lasts *window* seconds.

    Besides the tokens that are spent it counts those that are reserved for running streams. They belong to no window.

    It reads no clock: every method gets *now*, in seconds of a monotonic clock.
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._spent: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        """The end of each key's window and the tokens spent in it, ordered by that end."""
        self._reserved: dict[Hashable, int] = {}

    def left(self, key: Hashable, now: float) -> int:
        """The tokens that *key* can still spend in its window; negative if it has spent more than the limit."""
        return self.limit - self._window(key, now)[1]

    def reserved(self, key: Hashable) -> int:
        """The tokens that are reserved for *key*."""
        return self._reserved.get(key, 0)

    def resets(self, key: Hashable, now: float) -> float:
        """The seconds until *key*'s window ends and the whole limit is available again."""
        return max(0.0, self.ends(key, now) - now)

    def ends(self, key: Hashable, now: float) -> float:
        """When *key*'s window ends, or would end if it began now."""
        return self._window(key, now)[0]

    def spend(self, key: Hashable, tokens: int, now: float) -> None:
        """Counts *tokens* in *key*'s window. A negative number gives tokens back, never below 0 spent."""
        end, spent = self._window(key, now)
        self._spent[key] = (end, max(0, spent + tokens))
        while self._spent and next(iter(self._spent.values()))[0] <= now:  # the first entry expires first
            self._spent.popitem(last=False)

    def reserve(self, key: Hashable, tokens: int) -> None:
        """Reserves *tokens* for *key*. A negative number gives reserved tokens back."""
        reserved = self.reserved(key) + tokens
        if reserved > 0:
            self._reserved[key] = reserved
        else:
            self._reserved.pop(key, None)

    def _window(self, key: Hashable, now: float) -> tuple[float, int]:
        end, spent = self._spent.get(key, (0.0, 0))
        if end > now:
            return end, spent
        self._spent.pop(key, None)
        return now + self.window, 0
