"""The lease of this process, and the processes that have died."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Processes, Store

logger = logging.getLogger("quart_openai_sse")

_CHECKS = 3
"""After so many checks in a row, with an answer of the store each, an overdue process is taken for dead."""


class Watching(Protocol):
    """What is told of the processes. Neither method waits: the next renewal must not be late."""

    def forgotten(self) -> None:
        """The store did not know this process any more, which it had known."""
        ...

    def seen(self, processes: Processes, dead: frozenset[str]) -> None:
        """The processes that are registered. Those of *dead* are told of again until the store has forgotten them."""
        ...


class Lease:
    """Renews the lease of this process, four times in each *lease* seconds, and looks at the others meanwhile."""

    def __init__(self, store: Store, lease: float, watching: Watching) -> None:
        self.seconds = lease
        self._store = store
        self._watching = watching
        self._registered = False
        self._overdue: Counter[str] = Counter()
        self._doubted_until = float("-inf")

    @property
    def in_doubt(self) -> bool:
        """Whether the store has forgotten its processes less than a lease ago.

        It may have forgotten streams too, and their processes may not have come back to store them again. What the
        store does not have is not missing then.
        """
        return asyncio.get_running_loop().time() < self._doubted_until

    async def renew(self) -> Processes:
        """Renews it now. Raises `LogUnavailable`."""
        processes = await self._store.renew(self.seconds)
        if self._registered and not processes.known:
            self._doubted_until = asyncio.get_running_loop().time() + self.seconds
            self._watching.forgotten()
        self._registered = True
        return processes

    def leave(self) -> None:
        """The process was taken out of the store."""
        self._registered = False
        self._overdue.clear()

    async def run(self) -> None:
        """Renews it, until it is cancelled."""
        while True:
            await asyncio.sleep(self.seconds / 4)
            try:
                processes = await self.renew()
            except LogUnavailable:
                # Perhaps the others could not renew theirs either.
                self._overdue.clear()
            except Exception:
                logger.exception("the lease of this process could not be renewed")
                self._overdue.clear()
            else:
                self._look(processes)

    def _look(self, processes: Processes) -> None:
        self._overdue = Counter({each: self._overdue[each] + 1 for each in processes.overdue})
        try:
            dead = frozenset(process for process, checks in self._overdue.items() if checks >= _CHECKS)
            self._watching.seen(processes, dead)
        except Exception:
            logger.exception("the leases of other processes could not be checked")
