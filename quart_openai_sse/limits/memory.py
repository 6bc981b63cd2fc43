"""How many bytes of requests and streams the process holds."""

from __future__ import annotations

from threading import Lock
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
        """Bytes of requests that are arriving or whose streams run, and of answers that are put together for them."""
        self.unread = 0
        """Bytes that were taken from the log, and that the server has not accepted yet."""
        self._limit = limit
        self._log = log
        with _lock:
            _accounts.add(self)

    @property
    def held(self) -> int:
        """The bytes that this engine holds."""
        return self.bodies + self.unread + self._log.size

    def close(self) -> None:
        """Takes the account out of the sum: its engine is closed."""
        with _lock:
            _accounts.discard(self)

    def check(self, more: int = 0) -> None:
        """Raises `MemoryFull` if with *more* bytes the engines of this process together hold more than the limit."""
        with _lock:
            held = sum(account.held for account in _accounts)
        if held + more > self._limit:
            raise MemoryFull(f"The process would hold more than {self._limit} bytes of requests and streams.")


_accounts: WeakSet[MemoryAccount] = WeakSet()
_lock = Lock()  # event loops of several threads have accounts
