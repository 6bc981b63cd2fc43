"""What one process holds of the limits that all workers share, and how the store is told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

from quart_openai_sse.limits import Holding, Others, Refusal, SharedCounts, Wish
from quart_openai_sse.limits.tokens import SharedTokenBudget

logger = logging.getLogger("quart_openai_sse")

_PATIENCE = 1.0  # seconds for an answer of the store, and between two tries while it is away
_FLUSH = 0.25  # seconds after which tokens that were spent are told
_REFRESH = 300.0  # seconds after which everything is told again: keys expire, and a store may evict them
_AT_ONCE = 200  # owners, wishes of an owner and streams of an owner in one round trip


@dataclass(slots=True)
class _Held:
    """What this process holds of one owner's limits, besides tokens."""

    streams: int = 0
    readers: int = 0
    reading: Counter[str] = field(default_factory=Counter)
    changed: dict[str, None] = field(default_factory=dict)
    """The streams whose readers the store is yet to be told."""
    doubted: frozenset[str] = frozenset()
    """Processes that may be dead, although the store counts what they hold."""
    told: float = 0.0


@dataclass(slots=True, eq=False)
class _Asked:
    """A wish that waits for the store."""

    wish: Wish
    answer: asyncio.Future[Refusal]
    doubtful: bool = True
    """Whether a refusal may be due to a dead process."""


class Sharing:
    """The engine's side of `SharedCounts`: one task tells the store what is held, and asks for what is wished.

    There is one round trip at a time, for all owners that have anything to tell. While the store is away every process
    counts on its own: each wish is granted at once, and told when the store is back.
    """

    def __init__(self, counts: SharedCounts, budget: SharedTokenBudget | None = None) -> None:
        self.budget = budget
        """The tokens of this process, and what it knows of those of the others."""
        self.away = False
        """Whether the store cannot be reached."""
        self._counts = counts
        self._held: dict[str, _Held] = {}
        self._due: dict[str, None] = {}
        self._spent: dict[str, None] = {}
        """The owners whose tokens have changed, which are told `_FLUSH` seconds after the first of them."""
        self._asked: dict[str, list[_Asked]] = {}
        self._alive: frozenset[str] = frozenset()
        self._number = 0
        self._renew_at = 0.0
        self._flush_at = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        if budget is not None:
            budget.changed = self._changed

    # Take and give back -----------------------------------------------------------------------------------------

    async def take(self, owner: str, wish: Wish, *, patience: float = 3 * _PATIENCE) -> Refusal:
        """Takes what is wished; the result names the limit that it would exceed, or is "".

        If the store is away, or does not answer within *patience* seconds, it is taken without asking. Its tokens are
        reserved in the budget in any case.
        """
        if not self.away and not self._closing:
            self.open()
            asked = _Asked(wish, asyncio.get_running_loop().create_future())
            self._asked.setdefault(owner, []).append(asked)
            self._wake.set()
            try:
                await asyncio.wait({asked.answer}, timeout=patience)
            except asyncio.CancelledError:
                if asked.answer.done() and not asked.answer.result():
                    self._take_back(owner, wish)
                asked.answer.cancel()
                raise
            if asked.answer.done():
                return asked.answer.result()
            asked.answer.cancel()
        self._hold(owner, wish)
        self._due[owner] = None
        return ""

    def give_back(self, owner: str, *, streams: int = 0, reader: str = "") -> None:
        """Gives back streams, or a reader of the stream *reader*; the store is told at once."""
        held = self._held.setdefault(owner, _Held())
        held.streams -= streams
        if reader:
            held.readers -= 1
            held.reading[reader] -= 1
            held.changed[reader] = None
        self._due[owner] = None
        if not self.away:
            self._wake.set()

    def _take_back(self, owner: str, wish: Wish) -> None:
        self.give_back(owner, streams=wish.streams, reader=wish.stream)
        if self.budget is not None:
            self.budget.reserve(owner, wish.instead - wish.tokens)

    def _hold(self, owner: str, wish: Wish) -> None:
        held = self._held.setdefault(owner, _Held())
        held.streams += wish.streams
        if wish.stream:
            held.readers += 1
            held.reading[wish.stream] += 1
            held.changed[wish.stream] = None
        if self.budget is not None:
            self.budget.reserve(owner, wish.tokens - wish.instead)

    def _changed(self, owner: str) -> None:
        if not self._spent:
            self._flush_at = monotonic() + _FLUSH
            if not self.away:
                self._wake.set()
        self._spent[owner] = None

    # The store --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begins to hold a lease, unless that is done."""
        if self._task is None and not self._closing:
            # In an empty context: it outlives the request that begins it.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    async def aclose(self) -> None:
        """Gives everything back."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=2 * _PATIENCE)
            self._task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._counts.aclose()

    async def _run(self) -> None:
        while True:
            await self._sleep()
            closing = self._closing
            try:
                if monotonic() >= self._renew_at:
                    await self._renew()
                while not self.away and (owners := self._pending()):
                    await self._tell(owners)
                    if monotonic() >= self._renew_at:
                        break
            except Exception as error:
                self._lose(error)
            if closing:
                return

    async def _sleep(self) -> None:
        if not self.away and (self._due or self._asked):
            return
        until = min(self._renew_at, self._flush_at) if self._spent and not self.away else self._renew_at
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - monotonic())):
                await self._wake.wait()
        self._wake.clear()

    async def _renew(self) -> None:
        async with asyncio.timeout(_PATIENCE):
            found = await self._counts.renew()
        now = monotonic()
        self._alive = found.alive
        self._renew_at = now + self._counts.lease / 4
        if self.away:
            self.away = False
            logger.warning("limits are counted for all workers again")
        if not found.known and self.budget is not None:  # the store may have forgotten what was spent, too
            self._due.update(dict.fromkeys(self.budget.owners(now)))
        for owner, held in self._held.items():
            if not found.known or held.told < now - _REFRESH:
                held.changed.update(dict.fromkeys(held.reading))
                self._due[owner] = None

    def _lose(self, error: Exception) -> None:
        """Counts alone from now on, until the store answers again."""
        if not self.away:
            name = type(error).__name__
            logger.warning("the store of limits cannot be reached, so each process counts on its own: %s", name)
        self.away = True
        if self.budget is not None:
            self.budget.alone()
        self._renew_at = monotonic() + _PATIENCE
        # Told when it is back: the store may have missed what was told last.
        self._due.update(dict.fromkeys(self._held))
        asked, self._asked = self._asked, {}
        for owner, each in asked.items():
            self._count_alone(owner, each)

    def _count_alone(self, owner: str, asked: Sequence[_Asked]) -> None:
        for each in asked:
            if not each.answer.done():
                self._hold(owner, each.wish)
                each.answer.set_result("")
            self._due[owner] = None

    # One round trip ---------------------------------------------------------------------------------------------

    def _pending(self) -> list[str]:
        owners = dict.fromkeys((*self._asked, *self._due))
        if self._spent and monotonic() >= self._flush_at:
            owners.update(self._spent)
        return list(islice(owners, _AT_ONCE))

    async def _tell(self, owners: Sequence[str]) -> None:
        asked = {owner: self._next(owner) for owner in owners}
        holdings = [self._holding(owner, asked[owner]) for owner in owners]
        try:
            async with asyncio.timeout(_PATIENCE):
                answers = await self._counts.count(holdings)
        except Exception:
            self._asked = {owner: [*each, *self._asked.get(owner, ())] for owner, each in asked.items()} | {
                owner: each for owner, each in self._asked.items() if owner not in asked
            }
            for holding in holdings:
                self._held[holding.owner].changed.update(dict.fromkeys(holding.reading))
            raise
        now = monotonic()
        for holding, others in zip(holdings, answers, strict=True):
            self._learn(holding, asked[holding.owner], others, now)

    def _next(self, owner: str) -> list[_Asked]:
        """The next wishes of *owner*, without those that nobody waits for any more."""
        asked = [each for each in self._asked.pop(owner, ()) if not each.answer.done()]
        if len(asked) > _AT_ONCE:
            self._asked[owner] = asked[_AT_ONCE:]
        return asked[:_AT_ONCE]

    def _holding(self, owner: str, asked: Sequence[_Asked]) -> Holding:
        held = self._held.setdefault(owner, _Held())
        streams = dict.fromkeys(each.wish.stream for each in asked if each.wish.stream)
        streams.update(dict.fromkeys(islice(held.changed, _AT_ONCE)))
        for stream in streams:
            held.changed.pop(stream, None)
        self._due.pop(owner, None)
        if held.changed:
            self._due[owner] = None
        self._spent.pop(owner, None)
        self._number += 1
        holding = Holding(
            owner=owner,
            number=self._number,
            streams=held.streams,
            readers=held.readers,
            reading={stream: held.reading[stream] for stream in streams},
            dead=tuple(held.doubted - self._alive),
            wishes=[each.wish for each in asked],
        )
        return holding if self.budget is None else self.budget.fill(holding, monotonic())

    def _learn(self, holding: Holding, asked: Sequence[_Asked], others: Others, now: float) -> None:
        owner = holding.owner
        held = self._held[owner]
        held.told = now
        held.doubted = frozenset()
        if self.budget is not None:
            self.budget.learn(owner, others, now)
        for each, refusal in zip(asked, others.refusals, strict=True):
            if each.answer.done():  # nobody waits for it any more, and it may have been granted
                self._due[owner] = None
            elif not refusal:
                self._hold(owner, each.wish)
                each.answer.set_result("")
            elif each.doubtful and others.holders - self._alive:
                each.doubtful = False
                held.doubted = others.holders
                self._asked.setdefault(owner, []).append(each)
                self._renew_at = 0.0  # looks which processes are alive, before it asks again
            else:
                each.answer.set_result(refusal)
        for stream in holding.reading:
            if not held.reading[stream] and stream not in held.changed:
                del held.reading[stream]
        if not (held.streams or held.readers or held.reading or owner in self._due or owner in self._asked):
            del self._held[owner]
