"""Budgets: how many tokens a principal may use in a window of time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class TokenBudget:
    """*limit* tokens for each of those who spend, in every *window* seconds from their first one.

    It knows no clock: *now* is in seconds, from any beginning that does not change.
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._spent: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # by the end of the window

    def left(self, who: Hashable, now: float) -> int:
        """Tokens that may still be spent; negative after more was spent than there was."""
        return self.limit - self._current(who, now)[1]

    def resets(self, who: Hashable, now: float) -> float:
        """Seconds until all of it is there again."""
        return max(0.0, self._current(who, now)[0] - now)

    def spend(self, who: Hashable, tokens: int, now: float) -> None:
        """Takes *tokens* away; a negative number gives some back, of this window."""
        until, spent = self._current(who, now)
        self._spent[who] = (until, max(0, spent + tokens))
        # They were put in by the time at which their windows end, so the oldest are in front.
        while self._spent and next(iter(self._spent.values()))[0] <= now:
            self._spent.popitem(last=False)

    def _current(self, who: Hashable, now: float) -> tuple[float, int]:
        until, spent = self._spent.get(who, (0.0, 0))
        if until > now:
            return until, spent
        self._spent.pop(who, None)
        return now + self.window, 0
