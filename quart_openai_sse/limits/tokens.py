"""The limit of tokens that a principal may use in a window of time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from msgspec import structs

from quart_openai_sse.limits import Holding, Others

T = TypeVar("T", bound=tuple[Any, ...])


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
        reserved = self._reserved.get(key, 0) + tokens
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


class SharedTokenBudget(TokenBudget):
    """A budget whose limit and windows are those of all workers together.

    It knows what this process has spent and reserved, and what the others had when the store was asked last.
    """

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self.changed: Callable[[str], object] = lambda owner: None
        """Called when an owner's tokens have changed."""
        self._windows: dict[Hashable, tuple[float, int]] = {}
        """The end of an owner's window here, and in the store."""
        self._others: dict[Hashable, tuple[float, int, int]] = {}
        """The end of the window, and the tokens that other workers have spent in it and have reserved."""

    def left(self, key: Hashable, now: float) -> int:
        """See `TokenBudget.left`."""
        end, spent, _ = self._others.get(key, (0.0, 0, 0))
        return super().left(key, now) - (spent if end > now else 0)

    def reserved(self, key: Hashable) -> int:
        """The tokens that are reserved for *key* by all workers."""
        return super().reserved(key) + self._others.get(key, (0.0, 0, 0))[2]

    def spend(self, key: Hashable, tokens: int, now: float) -> None:
        """See `TokenBudget.spend`."""
        super().spend(key, tokens, now)
        self.changed(str(key))

    def reserve(self, key: Hashable, tokens: int) -> None:
        """See `TokenBudget.reserve`."""
        super().reserve(key, tokens)
        if tokens:
            self.changed(str(key))

    def owners(self, now: float) -> list[str]:
        """The owners that have spent tokens in a window that has not ended, or have reserved some."""
        return [str(key) for key, (end, _) in self._spent.items() if end > now] + [str(key) for key in self._reserved]

    def alone(self) -> None:
        """Forgets what the others have reserved: nothing will say when they give it back."""
        self._others = {key: (end, spent, 0) for key, (end, spent, _) in self._others.items()}

    def fill(self, holding: Holding, now: float) -> Holding:
        """*holding* with the tokens of this process."""
        key = holding.owner
        end, spent = self._window(key, now)
        known_end, window = self._windows.get(key, (0.0, 0))
        return structs.replace(
            holding,
            reserved=super().reserved(key),
            spent=spent,
            window=window if known_end == end else 0,
            remaining=round((end - now) * 1000),
            most_tokens=self.limit,
        )

    def learn(self, key: Hashable, others: Others, now: float) -> None:
        """Takes over what the store knows of the others."""
        end, spent = self._window(key, now)
        if others.window:
            told = now + others.remaining / 1000
            # A stream knows the window in which it was charged by its end, which therefore stays if it is about right.
            if key not in self._spent or abs(told - end) >= 1:
                end = told
            self._spent[key] = (end, spent)
            _renew(self._windows, key, (end, others.window), now)
        _renew(self._others, key, (end, others.spent, others.reserved), now)


def _renew(found: dict[Hashable, T], key: Hashable, value: T, now: float) -> None:
    """Sets a value that begins with its end, as the last one, and removes those at the front that have ended."""
    found.pop(key, None)
    found[key] = value
    while next(iter(found.values()))[0] <= now and len(found) > 1:
        del found[next(iter(found))]
