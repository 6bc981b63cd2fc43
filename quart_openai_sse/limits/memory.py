"""How many bytes of requests and streams the process holds."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from quart_openai_sse.errors import MemoryFull


class Sized(Protocol):
    """A stream log, as an account counts it."""

    @property
    def size(self) -> int:
        """The bytes of its streams in this process's memory."""
        ...


class MemoryAccount:
    """The bytes that one engine holds. The *limit* is for all engines of the process together."""

    def __init__(self, limit: int, log: Sized) -> None:
        self.bodies = 0
        """Of requests that arrive, and of those whose streams run."""
        self.unread = 0
        """Of events that were taken from the log, and that the server has not accepted yet."""
        self._limit = limit
        self._log = log
        _accounts.add(self)

    @property
    def held(self) -> int:
        """The bytes that this engine holds."""
        return self.bodies + self.unread + self._log.size

    def close(self) -> None:
        """Takes the account out of the sum: its engine is closed."""
        _accounts.discard(self)

    def check(self, more: int = 0) -> None:
        """Raises `MemoryFull` if with *more* bytes the engines of this process together hold more than the limit."""
        if sum(account.held for account in _accounts) + more > self._limit:
            raise MemoryFull(f"The process holds more than {self._limit} bytes of requests and streams.")


_accounts: WeakSet[MemoryAccount] = WeakSet()
