"""The lease of this process, and the processes that have died."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.mirror import Processes, Store

logger = logging.getLogger("quart_openai_sse")

_CHECKS = 3
"""After so many checks in a row, with an answer of the store each, an overdue process is taken for dead."""


class Lease:
    """Renews the lease of this process, four times in each *lease* seconds, and looks at the others meanwhile.

    *forgotten* is called when the store did not know this process any more, and *died* with each process that is taken
    for dead. That one is called again later if it raises.
    """

    def __init__(
        self,
        store: Store,
        lease: float,
        *,
        forgotten: Callable[[], object],
        died: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._lease = lease
        self._forgotten = forgotten
        self._died = died
        self._registered = False
        self._overdue: Counter[str] = Counter()

    async def renew(self) -> Processes:
        """Renews it now. Raises `LogUnavailable`, and `known` is false only after it was known before."""
        processes = await self._store.renew(self._lease)
        if self._registered and not processes.known:
            self._forgotten()
        elif not self._registered:
            self._registered = True
            processes = Processes(known=True, alive=processes.alive, overdue=processes.overdue)
        return processes

    def leave(self) -> None:
        """The process was taken out of the store."""
        self._registered = False
        self._overdue.clear()

    async def run(self) -> None:
        """Renews it, until it is cancelled."""
        while True:
            await asyncio.sleep(self._lease / 4)
            try:
                processes = await self.renew()
            except LogUnavailable:
                # Perhaps the others could not renew theirs either.
                self._overdue.clear()
            except Exception:
                logger.exception("the lease of this process could not be renewed")
                self._overdue.clear()
            else:
                await self._look(processes)

    async def _look(self, processes: Processes) -> None:
        self._overdue = Counter({each: self._overdue[each] + 1 for each in processes.overdue})
        for process, checks in list(self._overdue.items()):
            if checks >= _CHECKS:
                try:
                    await self._died(process)
                except LogUnavailable:
                    continue  # it is tried again
                except Exception:
                    logger.exception("the streams of a process that has died could not be ended")
