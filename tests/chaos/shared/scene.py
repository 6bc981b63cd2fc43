"""What is seen while a fault strikes: readers, starts, stops and `/ready` at two workers on a store; and the rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.chaos.shared.reading import Reading, Reply, call, request, start
from tests.chaos.shared.site import Site, Worker, serve_site, text_of

SLACK = 1.0
"""Seconds that anything may take beyond its deadline."""
RATE = 30.0
"""Tokens per second: of those streams that last longer than the fault."""

Hits = Literal["store", "killed", "frozen"]


@dataclass
class Stage:
    """A store, and how a fault strikes it."""

    log: str
    """Its address for the workers."""
    fault: Callable[[Scene], AbstractAsyncContextManager[None]]
    """While the block runs, the fault is there."""
    deadline: float = 3.0
    """Seconds that one call of the store may take."""


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    stage: Callable[[Path], AbstractAsyncContextManager[Stage]]
    seconds: float
    """How long the fault lasts."""
    hits: Hits = "store"
    """What it hits: the store, or the first worker, which is dead afterwards or was frozen beyond its lease."""
    is_quick: bool = False
    """Whether it is in CI's group."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the first worker."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of all workers."""


@dataclass
class Stream:
    """A stream that was started, and who has read it."""

    path: str
    model: str
    at: Worker
    """Where it is produced."""
    is_stopped: bool = False

    def reading(self) -> Reading:
        return Reading(self.path)


@dataclass
class Scene:
    """Two workers; the first one produces most of the streams."""

    site: Site
    fault: Fault
    streams: list[Stream] = field(default_factory=list)
    deadline: float = 0.0
    """See `Stage`."""
    began: float = 0.0
    """When the fault struck."""
    slack: float = SLACK
    """Seconds beyond any deadline, and of silence for a reader that is to notice nothing."""
    seen: dict[str, list[str]] = field(default_factory=dict)
    """What readers, starts, stops and /ready saw, by the table's columns."""
    wrong: list[str] = field(default_factory=list)

    @property
    def first(self) -> Worker:
        return self.site.workers[0]

    @property
    def second(self) -> Worker:
        return self.site.workers[1]

    @property
    def asked(self) -> list[Worker]:
        """The workers that can answer while the fault is there."""
        return self.site.workers if self.fault.hits == "store" else self.site.workers[1:]

    @property
    def living(self) -> list[Worker]:
        """The workers that run after the fault."""
        return self.site.workers[1:] if self.fault.hits == "killed" else self.site.workers

    # The play ---------------------------------------------------------------------------------------------------------

    async def play(self, stage: Stage) -> None:
        """Plays the fault, and judges what was seen."""
        lasts = int((self.fault.seconds + 4) * RATE)
        live, elsewhere = await self._start(self.first, lasts), await self._start(self.second, lasts)
        here, there = await self._start(self.first, 10_000), await self._start(self.first, 10_000)
        unread = await self._start(self.first, lasts)
        readers = {
            "readers beside": (live, [self.first]),
            "readers elsewhere": (live, [self.second]),
            "readers of the other worker's": (elsewhere, [self.second]),
            "readers here of the other worker's": (elsewhere, [self.first]),
        }
        readings = {name: stream.reading() for name, (stream, _) in readers.items()}
        tasks = [
            asyncio.ensure_future(readings[name].to_the_end(self._ports(*at), patience=self.fault.seconds + 30))
            for name, (_, at) in readers.items()
        ]
        async with asyncio.timeout(20 + self.slack):  # a reading that fails before its first event never begins
            for reading in readings.values():
                await reading.begun.wait()
        resuming = [(stream, stream.reading()) for stream in (live, unread)]
        for _, reading in resuming:
            await reading.follow(self.first.port, events=10)
        self.began = time.monotonic()
        async with stage.fault(self):
            await asyncio.gather(
                self._during([reading for _, reading in resuming], here, there), self._lasting(tasks[1])
            )
        if self.fault.hits == "store" and not self._is_ready_when_it_can_start():
            self.wrong.append("/ready: 200 all the time, and no start succeeded")
        healed = await self.site.until_ready(*self.living)
        self._note("/ready", f"200 again after {healed:.1f} s")
        await self._afterwards(here, there)
        await asyncio.gather(*tasks)
        for name, (stream, _) in readers.items():
            self._judge(
                name, stream, readings[name], is_beside=name in ("readers beside", "readers of the other worker's")
            )
        if (
            self.fault.hits == "frozen"
            and await self.site.upstream_closes(live.model, self.deadline + self.slack) is None
        ):
            self.wrong.append("the upstream of the frozen worker was not closed")
        for stream, reading in resuming:
            await reading.to_the_end(self._ports(*self.living[-1:]))
            self._judge("resuming", stream, reading)
        for stream in self.streams[5:]:
            await (reading := stream.reading()).to_the_end(self._ports(*self.living[-1:]))
            self._judge("starts", stream, reading)
        await self._judge_hooks()

    async def _lasting(self, elsewhere: asyncio.Task[None]) -> None:
        """Returns when the fault has lasted long enough: a freeze, until the others have ended the worker's streams."""
        await asyncio.sleep(self.fault.seconds)
        if self.fault.hits == "frozen":
            await asyncio.wait([elsewhere])

    async def _during(self, resuming: list[Reading], here: Stream, there: Stream) -> None:
        await asyncio.sleep(0.3)
        stops = [self._stop(self.second, there)]
        if self.first in self.asked:
            stops.append(self._stop(self.first, here))
        await asyncio.gather(*stops, self._probe(resuming))
        while time.monotonic() < self.began + self.fault.seconds - self.deadline - SLACK:
            await asyncio.sleep(1)
            await self._probe(resuming)

    async def _probe(self, resuming: list[Reading]) -> None:
        """Asks for everything once, at each worker that can answer."""
        for worker in self.asked:
            await asyncio.gather(
                self._expect("/ready", worker.ready(), 200, 503),
                self._started(worker, 201, 503),
                self._expect("plain calls", call(worker.port, self.site.model(5, 0)), 200),
            )
        for reading in resuming:
            for worker in reversed(self.asked):
                if not reading.outcome:
                    await self._expect("resuming", reading.attempt(worker.port), 200, 204, 503)

    async def _afterwards(self, *running: Stream) -> None:
        for worker in self.living:
            await self._started(worker, 201)
            await self._expect("plain calls", call(worker.port, self.site.model(5, 0)), 200)
        for stream in running:
            if not stream.is_stopped:
                await self._stop(self.second, stream, 204)

    def _is_ready_when_it_can_start(self) -> bool:
        """Whether some start succeeded, or some `/ready` said that none can."""
        starts, ready = self.seen.get("starts", []), self.seen.get("/ready", [])
        return any(not each.startswith("503") for each in starts) or any(not each.startswith("200") for each in ready)

    # Steps ------------------------------------------------------------------------------------------------------------

    async def _start(self, worker: Worker, tokens: int, rate: float = RATE) -> Stream:
        model = self.site.model(tokens, rate)
        reply = await start(worker.port, model)
        assert reply.status == 201, reply
        self.streams.append(Stream(reply.body["url"], model, worker))
        return self.streams[-1]

    async def _started(self, worker: Worker, *statuses: int) -> None:
        model = self.site.model(20, 0)
        reply = await self._expect("starts", start(worker.port, model), *statuses)
        if reply.status == 201:
            self.streams.append(Stream(reply.body["url"], model, worker))

    async def _stop(self, worker: Worker, stream: Stream, *statuses: int) -> None:
        """A worker that produces the stream needs no store for this."""
        expected = statuses or ((204,) if worker is stream.at else (204, 503))
        reply = await self._expect("stops", request(worker.port, "DELETE", stream.path), *expected)
        stream.is_stopped = reply.status == 204
        if stream.is_stopped and self.fault.hits == "store":
            closed = await self.site.upstream_closes(stream.model, self.deadline + self.slack)
            if closed is None:
                self.wrong.append("stops: the upstream was not closed")

    async def _expect(self, column: str, asked: Awaitable[Reply], *statuses: int) -> Reply:
        reply = await asked
        self._note(column, str(reply))
        if reply.status not in statuses:
            self.wrong.append(f"{column}: {reply} {reply.body or ''}")
        if reply.seconds > self.deadline + self.slack:
            self.wrong.append(f"{column}: hung, {reply}")
        return reply

    def _note(self, column: str, what: str) -> None:
        self.seen.setdefault(column, []).append(what)

    def _ports(self, *workers: Worker) -> Callable[[], int]:
        """These workers' ports, one after the other; those of dead ones only once."""
        numbers = iter(range(1_000_000))

        def port() -> int:
            alive = [worker for worker in workers if worker.process.returncode is None] or self.living
            return alive[next(numbers) % len(alive)].port

        return port

    # The rules --------------------------------------------------------------------------------------------------------

    async def _judge_hooks(self) -> None:
        """Whether `on_end` was called once for each stream: of a lost one, on a worker that lives."""
        for place, stream in enumerate(self.streams):
            is_lost = self.fault.hits != "store" and stream.at is self.first and place < 5  # the others began later
            stream_id = stream.path.rpartition("/")[2]
            async with asyncio.timeout(10 + self.slack):
                while not (calls := self.site.calls(stream_id)):
                    await asyncio.sleep(0.05)
            self._note(
                "on_end", " ".join(calls[0].split()[:2]).removesuffix(" -") + (", on another worker" if is_lost else "")
            )
            wrong = len(calls) != 1 or (is_lost and calls[0].endswith(f" {self.first.process.pid}"))
            if wrong:
                self.wrong.append(f"on_end: {calls} of a stream of {stream.at.process.pid}")

    def _judge(self, name: str, stream: Stream, reading: Reading, *, is_beside: bool = False) -> None:
        """Whether a reader has seen what it may see."""
        text, mine = text_of(stream.model), reading.text
        is_lost = self.fault.hits != "store" and stream.at is self.first
        whole = reading.outcome == "completed" and mine == text
        honest = reading.outcome == "producer_lost" and text.startswith(mine)
        again = f", {reading.responses} responses" if reading.responses > 1 else ""
        after = f" after {reading.ended - self.began:.1f} s" if honest and name.startswith("readers") else ""
        refused = "".join(f", {status}" for status in sorted(set(reading.statuses)))
        self._note(name, f"{'whole' if whole else reading.outcome or 'no end'}{after}{again}{refused}")
        self.wrong += [f"{name}: {what}" for what in reading.wrong]
        if not (honest if is_lost and name != "starts" else whole):
            self.wrong.append(f"{name}: {reading.outcome or 'no end'}, {len(mine)} of {len(text)} characters")
        if is_beside and self.fault.hits == "store":
            if reading.responses != 1:
                self.wrong.append(f"{name}: {reading.responses} responses")
            if reading.silence > 1 + self.slack:
                self.wrong.append(f"{name}: nothing for {reading.silence:.1f} s")


async def played(fault: Fault, folder: Path, *, slack: float = SLACK) -> Scene:
    """The fault, played."""
    async with fault.stage(folder) as stage, serve_site(folder, stage.log, workers=0, **fault.options) as site:
        await site.add(**fault.environment)
        await site.add()
        scene = Scene(site, fault, deadline=stage.deadline, slack=slack)
        try:
            await scene.play(stage)
        except Exception as error:
            scene.wrong.append(f"{type(error).__name__}: {error}")
            scene.wrong += [f"{each.errors.name}: {each.errors.read_text()[-2000:]}" for each in site.workers]
        return scene


@asynccontextmanager
async def nothing(scene: Scene) -> AsyncIterator[None]:
    """No fault."""
    yield
