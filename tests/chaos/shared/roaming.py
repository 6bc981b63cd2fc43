"""Many streams on four workers; clients that go from one to another; workers that die and a store that fails meanwhile.

Everything random comes from one seed. What is printed at the end is what became of each stream.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.shared.reading import Reading, Reply, request, start
from tests.chaos.shared.roaming_faults import STORES, Disturbed
from tests.chaos.shared.site import LEASE, Site, Worker, serve_site, text_of

WORKERS = 4
RATE = 10.0
LONGEST = 200
"""Tokens of a stream."""
PATIENCE = 60.0
"""Seconds after which a stream that ought to be over has not ended."""


@dataclass
class Roaming:
    """What was seen so far."""

    site: Site
    seed: int
    disturbed: Disturbed
    outcomes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """Of requests."""
    errors: Counter[str] = field(default_factory=Counter)
    """Last lines of tracebacks that the workers wrote."""
    wrong: list[str] = field(default_factory=list)
    done: bool = False

    def any_worker(self, chance: random.Random) -> Worker:
        """One of the workers that run."""
        return chance.choice([worker for worker in self.site.workers if worker.process.returncode is None])

    async def client(self, number: int) -> None:
        """One stream after the other, until the time is over."""
        chance = random.Random(f"{self.seed}/{number}")
        await asyncio.sleep(chance.random() * 5)
        while not self.done:
            try:
                await self._stream(chance)
            except Exception as error:
                self.wrong.append(f"client {number}: {type(error).__name__}: {error}")
                await asyncio.sleep(1)

    async def _stream(self, chance: random.Random) -> None:
        model = self.site.model(chance.randrange(1, LONGEST), RATE)
        began = time.monotonic()
        keyed = chance.random() < 0.25
        worker, reply = await self._start(chance, model, keyed=keyed)
        if reply is None:
            return
        reading, stops_after = (
            Reading(reply.body["url"]),
            chance.random() * LONGEST / 2 if chance.random() < 0.1 else 1e9,
        )
        asked = False
        limit = time.monotonic() + LONGEST / RATE + PATIENCE
        while not reading.outcome and not reading.wrong:
            if time.monotonic() > limit:
                reading.wrong.append("not ended in time")
                break
            if int(reading.last or 0) >= stops_after and not asked:
                asked = (
                    await self._asked("stop", request(self.any_worker(chance).port, "DELETE", reading.stream))
                ).status == 204
            before = len(reading.statuses)
            events = min(
                chance.randrange(1, LONGEST // 2), max(1, stops_after - int(reading.last or 0)) if not asked else 1e9
            )
            await reading.follow(self.any_worker(chance).port, events=events)
            self.seen.update(f"resume {status}" for status in reading.statuses[before:])
            self.seen["resume 200"] += len(reading.statuses) == before
            if not reading.outcome:
                await asyncio.sleep(chance.random() * 0.5)
        self._judge(model, reading, worker, began, asked=asked, keyed=keyed)

    async def _start(self, chance: random.Random, model: str, *, keyed: bool) -> tuple[Worker, Reply | None]:
        """Starts it; *keyed*: by two requests at once with one Idempotency-Key, again and again until it runs."""
        worker = self.any_worker(chance)
        if not keyed:
            reply = await self._asked("start", start(worker.port, model))
            if reply.status != 201:
                self._not_started(reply, worker, model)
            return worker, reply if reply.status == 201 else None
        headers = {"Idempotency-Key": model}
        for _ in range(60):
            workers, began = [self.any_worker(chance), self.any_worker(chance)], time.monotonic()
            replies = await asyncio.gather(
                *(self._asked("start with a key", start(each.port, model, **headers)) for each in workers)
            )
            ids = {reply.body["id"] for reply in replies if reply.status in (200, 201)}
            if len(ids) > 1 and not self.disturbed.emptied_since(began - 1):
                self.wrong.append(f"{model}: two streams of one key")
            for each, reply in zip(workers, replies, strict=True):
                if reply.status in (200, 201):
                    return each, reply
                if reply.status:
                    self._not_started(reply, each, model)
            await asyncio.sleep(0.5)
        self.wrong.append(f"{model}: not started in 60 attempts")
        return worker, None

    def _not_started(self, reply: Reply, worker: Worker, model: str) -> None:
        if reply.status == 0 and not self.disturbed.hit(worker, time.monotonic() - reply.seconds - 1):
            self.wrong.append(f"{model}: a start was cut or hung for {reply.seconds:.1f} s")
        elif reply.status not in (0, 503):
            self.wrong.append(f"{model}: a start was answered {reply.status} {reply.body}")

    async def _asked(self, what: str, asking: Awaitable[Reply]) -> Reply:
        reply = await asking
        self.seen[f"{what} {reply.status or 'cut'}"] += 1
        return reply

    def _judge(self, model: str, reading: Reading, worker: Worker, began: float, *, asked: bool, keyed: bool) -> None:
        text = text_of(model)
        is_part = text.startswith(reading.text)
        match reading.outcome:
            case "completed" if reading.text == text:
                outcome = "whole"
            case "stopped" if asked and is_part:
                outcome = "stopped, as asked"
            case "producer_lost" if is_part and self.disturbed.any_hit(began):
                outcome = "producer_lost, with the text so far"
            case "start_abandoned" if not reading.text and keyed:
                outcome = "start_abandoned: the start was answered 503, and its key used again"
            case "server_shutdown" if is_part and self.disturbed.any_hit(began):
                outcome = "server_shutdown, with the text so far"
            case "" if any(what.startswith("404") for what in reading.wrong) and self.disturbed.may_be_forgotten(began):
                outcome = "404: its worker was ended, and the store emptied"
            case _:
                outcome = "WRONG"
                place = f"{len(reading.text)} of {len(text)} characters, {'a part' if is_part else 'NOT A PART'}"
                self.wrong.append(
                    f"{model} {reading.stream} of worker {worker.process.pid}: {reading.outcome or 'no end'}, {place}, "
                    f"{reading.responses} responses, {reading.wrong}"
                )
        self.outcomes[outcome] += 1


async def run(
    write: Callable[[str], object], *, minutes: float, streams: int, store: str, seed: int, keep: Path | None = None
) -> bool:
    """Prints what became of everything; whether nothing went wrong. The workers' stderr stays in *keep*."""
    write(f"{streams} clients, {WORKERS} workers on {store}, a lease of {LEASE:g} s, seed {seed}\n\n")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        async with STORES[store](folder) as kept, serve_site(folder, kept.log, workers=WORKERS) as site:
            disturbed = Disturbed(site, kept, write)
            roaming = Roaming(site, seed, disturbed)
            clients = [asyncio.ensure_future(roaming.client(number)) for number in range(streams)]
            try:
                await disturbed.run(random.Random(f"{seed}/faults"), minutes * 60)
            finally:
                roaming.done = True
            await asyncio.wait(clients, timeout=LONGEST / RATE + 2 * PATIENCE)
            roaming.wrong += [
                f"client {number} has not ended" for number, each in enumerate(clients) if not each.done()
            ]
            roaming.wrong += disturbed.check()
        for worker in site.workers:
            roaming.errors.update(_errors(worker.errors.read_text()))
    return _report(roaming, write)


def _errors(text: str) -> list[str]:
    """The last line of each traceback."""
    lines = iter(text.splitlines())
    return [
        next((each for each in lines if not each.startswith(" ")), "") for line in lines if line.startswith("Traceback")
    ]


def _report(roaming: Roaming, write: Callable[[str], object]) -> bool:
    for title, counter in (
        ("streams", roaming.outcomes),
        ("faults", roaming.disturbed.faults),
        ("responses", roaming.seen),
        ("tracebacks in the workers' stderr", roaming.errors),
    ):
        write(f"\n{title}: {counter.total()}\n")
        for what, count in counter.most_common():
            write(f"  {what[:100]:60} {count:7}\n")
    write(f"\nwrong: {len(roaming.wrong)}\n")
    for line in roaming.wrong[:200]:
        write(f"  {line}\n")
    return not roaming.wrong
