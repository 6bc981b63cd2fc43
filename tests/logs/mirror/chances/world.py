"""Two processes on one store, what their producers and clients do, and the faults."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from quart_openai_sse.errors import LogUnavailable, OpenAISSEError
from quart_openai_sse.logs import About, StreamLog
from tests.logs.mirror.chances.streams import TRUNCATED, Client, Produced

PATIENCE = 120
"""Seconds until everything has an end, once all is well."""


class Faults(Protocol):
    """The switches of the store of one process: see `memory_store`."""

    process: str
    faults: object

    def disconnect(self, *, applied: bool = False) -> None: ...
    def connect(self) -> None: ...
    def miss(self, count: int) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


class Shared(Protocol):
    """What both processes share. What is done to it may be awaitable."""

    def flush(self) -> Any: ...
    def forget(self, key: str) -> Any: ...
    def forget_batches(self, key: str) -> Any: ...
    def may_be_dead(self, process: str, since: float) -> bool: ...


class World:
    """Does a number of random steps, and then checks that everything comes to an end.

    Every decision is made by *seed*. `steps` says what was done.
    """

    def __init__(
        self,
        seed: int,
        logs: tuple[StreamLog, StreamLog],
        stores: tuple[Faults, Faults],
        shared: Shared,
        *,
        pace: float = 1,
    ) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.logs, self.stores, self.shared = logs, stores, shared
        self.pace = pace
        """What the times between steps are multiplied with."""
        self.steps: list[str] = []
        self.streams: list[Produced] = []
        self.clients: list[Client] = []
        self.frozen = [False, False]
        self.forgotten: dict[str, float] = {}
        """When a key was forgotten last; "" is all of them."""
        self.evicted: set[str] = set()
        self.starting: list[asyncio.Task[None]] = []
        self.failures: list[str] = []
        self.over = False

    def check(self, condition: object, message: str) -> None:
        """Notes a failure, also where what is raised does not reach the test."""
        if not condition and not self.over:
            self.failures.append(message)
            raise AssertionError(message)

    def time(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    async def play(self, steps: int) -> None:
        """Does so many random steps, ends all faults, and notes what is wrong."""
        try:
            for _ in range(steps):
                await self.step()
            async with asyncio.timeout(PATIENCE):
                await self.finish()
        except TimeoutError:
            endless = [client for client in self.clients if client.end is None and not client.gone]
            self.failures += [f"{client} has no end" for client in endless] or ["a step has no end"]
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        self.over = True
        for task in [*self.starting, *(client.reading for client in self.clients)]:
            task.cancel()
        await asyncio.gather(*self.starting, *(client.reading for client in self.clients), return_exceptions=True)

    # What may happen

    def was_dead(self, stream: Produced) -> bool:
        """Whether a stream's process may have been taken for dead since the stream began."""
        return self.shared.may_be_dead(self.stores[stream.process].process, stream.began)

    def may_be_gone(self, stream: Produced, error: str) -> bool:
        """Whether nobody may know a stream any more, or nobody its entries."""
        forgotten = max(self.forgotten.get(stream.key, -1.0), self.forgotten.get("", -1.0)) >= stream.began
        if stream.replaced or (stream.end is TRUNCATED and not stream.texts):  # the latter need not be stored at all
            return True
        if error == "StreamExpired":
            return stream.key in self.evicted and (stream.end is not None or self.was_dead(stream))
        return forgotten and (stream.end is not None or self.was_dead(stream))

    # Steps

    async def step(self) -> None:
        """Does one random step, and lets some time pass."""
        steps: dict[Callable[[], Awaitable[str] | str], int] = {
            self._start: 5,
            self._append: 14,
            self._close: 3,
            self._attach: 8,
            self._hop: 6,
            self._stop: 1,
            self._start_again: 2,
            self._disconnect: 2,
            self._connect: 3,
            self._fail_calls: 2,
            self._miss: 2,
            self._freeze: 1,
            self._thaw: 2,
            self._flush: 1,
            self._forget: 1,
            self._forget_batches: 1,
        }
        if hasattr(self.shared, "cut"):
            steps[self._cut] = 1
        (step,) = self.random.choices(list(steps), list(steps.values()))
        said = await done(step())
        if said:
            self.steps.append(f"{self.time():.2f} {said}")
        await asyncio.sleep(self.random.choice([0, 0, 0, 0.001, 0.01, 0.1, 0.4, 1, 4]) * self.pace)

    def _process(self) -> int:
        return self.random.randrange(2)

    def _running(self) -> list[Produced]:
        return [each for each in self.streams if each.end is None and not self.frozen[each.process]]

    def _start(self) -> str:
        process = self._process()
        if self.frozen[process]:
            return ""
        key = f"k{len(self.starting)}"
        digest, waits = self.random.choice(["", "x"]), self.random.random() < 0.5
        self.starting.append(asyncio.create_task(self._create(key, process, digest, waits=waits)))
        return f"start {key} in {process} with digest {digest!r}, waits until it is stored: {waits}"

    async def _create(self, key: str, process: int, digest: str, *, waits: bool) -> None:
        try:
            writer = await self.logs[process].create(key, about=About(id=key, owner="ann"), digest=digest, retain=True)
        except LogUnavailable:
            return
        self.check(writer is not None, f"{key} is new, and create returned None")
        assert writer is not None
        stream = Produced(self, key, process, writer, has_digest=bool(digest))
        with suppress(LogUnavailable):
            if waits:
                await writer.stored()
        self.streams.append(stream)

    def _start_again(self) -> str:
        """A request is repeated, with its key."""
        known = [
            each
            for each in self.streams
            if each.has_digest and not self.was_forgotten(each) and each.texts and not each.lost
        ]
        process = self._process()
        if not known or self.frozen[process]:
            return ""
        stream = self.random.choice(known)
        self.starting.append(asyncio.create_task(self._attach_to(stream, process)))
        return f"start {stream.key} again in {process}"

    async def _attach_to(self, stream: Produced, process: int) -> None:
        try:
            writer = await self.logs[process].create(
                stream.key, about=About(id=stream.key), digest="another", retain=True
            )
        except OpenAISSEError:  # KeyReused, or LogUnavailable: then another stream may have begun in an emptied store
            stream.replaced |= self.was_forgotten(stream)
            return
        self.check(writer is None or self.was_forgotten(stream) or self.was_dead(stream), f"{stream} was begun twice")
        if writer is not None:
            stream.replaced = True
            with suppress(LogUnavailable):
                await writer.close(TRUNCATED)

    def was_forgotten(self, stream: Produced) -> bool:
        """Whether the store has forgotten a stream at some time."""
        return max(self.forgotten.get(stream.key, -1.0), self.forgotten.get("", -1.0)) >= stream.began

    def _append(self) -> str:
        if not (running := self._running()):
            return ""
        stream = self.random.choice(running)
        number = self.random.choice([1, 1, 1, 2, 5, 40])
        size = self.random.choice([0, 10, 10, 100, 3000, 40_000])
        stream.append(number, size)
        return f"append {number} of {size} bytes to {stream.key}"

    def _close(self) -> str:
        if not (running := self._running()):
            return ""
        stream = self.random.choice(running)
        outcome = self.random.choice(["completed", "completed", "failed"])
        stream.close(outcome)
        return f"close {stream.key}: {outcome}"

    def _attach(self) -> str:
        if not self.streams:
            return ""
        stream = self.random.choice(self.streams)
        client = Client(self, str(len(self.clients)), stream, self._process())
        self.clients.append(client)
        return f"client {client.name} reads {stream.key} at {client.process}"

    async def _hop(self) -> str:
        reading = [each for each in self.clients if not each.reading.done()]
        if not reading:
            return ""
        client = self.random.choice(reading)
        await client.hop()
        return f"client {client.name} goes to {client.process} with {client.had} entries"

    def _stop(self) -> str:
        if not (running := self._running()):
            return ""
        stream, process = self.random.choice(running), self._process()
        self.starting.append(asyncio.create_task(self._stop_it(stream, process, f"step {len(self.steps)}")))
        return f"stop {stream.key} from {process}"

    async def _stop_it(self, stream: Produced, process: int, reason: str) -> None:
        try:
            await self.logs[process].stop(stream.key, reason)
        except LogUnavailable:
            return
        except OpenAISSEError as error:
            gone = type(error).__name__
            self.check(self.may_be_gone(stream, gone), f"stop of {stream} got {gone}")

    # Faults

    def _disconnect(self) -> str:
        process, applied = self._process(), self.random.random() < 0.5
        self.stores[process].disconnect(applied=applied)
        return f"disconnect {process}, applied: {applied}"

    def _connect(self) -> str:
        process = self._process()
        self.stores[process].connect()
        return f"connect {process}"

    def _fail_calls(self) -> str:
        process = self._process()
        faults = [self.random.choice(["", "before", "after"]) for _ in range(self.random.randint(1, 4))]
        self.stores[process].faults.extend(faults)  # type: ignore[attr-defined]
        return f"the next calls of {process}: {faults}"

    def _miss(self) -> str:
        """A store that may have missed messages calls `again` some time later."""
        process, count = self._process(), self.random.randint(1, 4)
        store = self.stores[process]
        store.miss(count)
        asyncio.get_running_loop().call_later(self.random.choice([0.1, 1, 3]) * self.pace, store.connect)
        return f"{process} misses {count} messages"

    def _freeze(self) -> str:
        process = self._process()
        self.stores[process].freeze()
        self.frozen[process] = True
        return f"freeze {process}"

    def _thaw(self) -> str:
        process = self._process()
        self.stores[process].thaw()
        self.frozen[process] = False
        return f"thaw {process}"

    async def _flush(self) -> str:
        self.forgotten[""] = self.time()
        await done(self.shared.flush())
        return "flush"

    async def _forget(self) -> str:
        if not self.streams:
            return ""
        key = self.random.choice(self.streams).key
        self.forgotten[key] = self.time()
        await done(self.shared.forget(key))
        return f"forget {key}"

    async def _forget_batches(self) -> str:
        if not self.streams:
            return ""
        key = self.random.choice(self.streams).key
        self.forgotten[key] = self.time()
        self.evicted.add(key)
        await done(self.shared.forget_batches(key))
        return f"forget the batches of {key}"

    async def _cut(self) -> str:
        await done(self.shared.cut())  # type: ignore[attr-defined]
        return "cut the connections"

    # The end

    async def finish(self) -> None:
        """Ends all faults and all streams, and waits until each client has an end."""
        for store in self.stores:
            store.faults.clear()  # type: ignore[attr-defined]
            store.connect()
            store.thaw()
        self.steps.append(f"{self.time():.2f} all is well")
        await asyncio.gather(*self.starting)
        for stream in self.streams:
            stream.close("completed")
        await asyncio.gather(*(each.closing for each in self.streams if each.closing is not None))
        for stream in self.streams:
            self.clients += [Client(self, f"last {process}", stream, process) for process in (0, 1)]
        await asyncio.gather(*(client.reading for client in self.clients))


async def done(result: Any) -> Any:
    """The *result*, awaited if it can be."""
    return await result if inspect.isawaitable(result) else result
