"""How many bytes of requests and streams the process holds."""

from __future__ import annotations

from threading import Lock
from typing import Protocol
from weakref import ref

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
        _change_accounts(add=self)

    @property
    def held(self) -> int:
        """The bytes that this engine holds."""
        return self.bodies + self.unread + self._log.size

    def close(self) -> None:
        """Takes the account out of the sum: its engine is closed."""
        _change_accounts(remove=self)

    def check(self, more: int = 0) -> None:
        """Raises `MemoryFull` if with *more* bytes the engines of this process together hold more than the limit."""
        held = sum(account.held for each in _accounts if (account := each()) is not None)
        if held + more > self._limit:
            raise MemoryFull(f"The process would hold more than {self._limit} bytes of requests and streams.")


# A tuple, which is replaced as a whole: event loops of several threads have accounts, and each start looks at all.
_accounts: tuple[ref[MemoryAccount], ...] = ()
_lock = Lock()


def _change_accounts(*, add: MemoryAccount | None = None, remove: MemoryAccount | None = None) -> None:
    global _accounts
    with _lock:
        kept = [each for each in _accounts if (account := each()) is not None and account is not remove]
        _accounts = (*kept, *([] if add is None else [ref(add)]))
