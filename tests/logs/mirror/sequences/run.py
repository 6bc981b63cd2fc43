"""Runs a sequence of operations on two logs, and compares what they do with the model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from quart_openai_sse import errors
from quart_openai_sse.errors import InvalidLastEventID, KeyReused, OpenAISSEError
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs import END_ID, About, End, Entry, Reader, StreamLog, Writer
from quart_openai_sse.testing.log_contract_base import Watched, check_lost
from tests.logs.mirror.sequences.model import Model, Operation, Sequence

COMPLETED = End("completed", finish_reasons={0: "stop"})
SECONDS = 20
"""For one operation, or for the comparison. Many sequences run at a time."""


class Run:
    """One sequence, on a key of its own."""

    def __init__(self, logs: tuple[StreamLog, StreamLog], key: str, sequence: Sequence) -> None:
        self.sequence = sequence
        self.key = key
        self.model = Model()
        self.failure = ""
        self._logs = logs
        self._about = About(id=key, owner=f"owner of {key}")
        self._writers: list[Writer | None] = [None, None]
        self._watched: list[Watched | None] = [None, None]
        self._readers: list[Reader | None] = [None, None]

    async def step(self, number: int) -> None:
        """Does the operation *number*. `lose` and `expire` are done for many sequences at once, by the caller."""
        operation = self.sequence[number]
        before, self.model = self.model, self.model.after(operation)
        await self._guard(f"{number}: {operation}", lambda: self._do(operation, before))

    async def settle(self) -> None:
        """Returns when every process knows what was done."""
        await self._guard("settle", self._settle)

    async def compare(self) -> None:
        """Compares what each process has with the model."""
        for process in (0, 1):
            await self._guard(f"process {process}", lambda process=process: self._compare(process))

    async def _guard(self, where: str, do: Callable[[], Awaitable[None]]) -> None:
        if self.failure:
            return
        try:
            async with asyncio.timeout(SECONDS):
                await do()
        except Exception as error:
            self.failure = f"{where}: {type(error).__name__}: {error}"

    # Operations

    async def _do(self, operation: Operation, before: Model) -> None:
        name, process = operation
        if name in ("create", "attach", "append", "close", "stop"):
            await getattr(self, f"_{name}")(process, before)

    async def _create(self, process: int, before: Model) -> None:
        writer = await self._logs[process].create(self.key, about=self._about, digest="x", retain=True)
        same("create returns None", writer is None, before.held)
        if writer is not None:
            self._writers[process], self._watched[process] = writer, Watched(writer)
            await writer.stored()

    async def _attach(self, process: int, before: Model) -> None:
        log, client = self._logs[process], self.model.clients[process]
        reader = self._readers[process]
        if reader is not None and not before.refusal:
            await self._finish(process, before)
        if before.refusal:
            await refuses(before.refusal, log.read(self.key))
        else:
            after = END_ID if client.at_end else str(client.place or "")
            self._readers[process] = await log.read(self.key, after=after)

    async def _append(self, process: int, before: Model) -> None:
        writer = self._writers[process]
        assert writer is not None
        text = self.model.entries[-1] if self.model.entries else "of no stream"
        flow = writer.append([entry(text)])
        same("append returns", flow, Flow.MORE if before.runs_in(process) else Flow.ENOUGH)

    async def _close(self, process: int, before: Model) -> None:
        writer = self._writers[process]
        assert writer is not None
        await writer.close(COMPLETED)

    async def _stop(self, process: int, before: Model) -> None:
        stopping = self._logs[process].stop(self.key, f"by {process}")
        await (refuses("StreamNotFound", stopping) if not before.stream else stopping)

    async def _settle(self) -> None:
        if not self.model.refusal:
            wanted = str(len(self.model.entries) or ""), bool(self.model.end)
            for log in self._logs:
                while await log.tail(self.key) != wanted:
                    await asyncio.sleep(0.05)
        for watched, producer in zip(self._watched, self.model.producers, strict=True):
            if watched is not None and producer is not None:
                if producer.lost:
                    await watched.lost.wait()
                while producer.stopped and watched.stopped.empty():
                    await asyncio.sleep(0.05)

    # Comparison

    async def _compare(self, process: int) -> None:
        model, log = self.model, self._logs[process]
        await self._finish(process, model)
        await self._compare_producer(process)
        if model.held:
            await refuses("KeyReused", log.create(self.key, about=self._about, digest="y", retain=True))
        found = await log.find(self._about.owner)
        same("find", found, [self._about] if model.stream and not model.end else [])
        if model.refusal:
            for after in ("", "1", END_ID):
                await refuses(model.refusal, log.read(self.key, after=after))
            await refuses(model.refusal, log.tail(self.key))
            return
        if model.held:
            found = await log.find(self._about.owner, ended_within=1e9)
            same("find what ended", found, [] if model.expired else [self._about])
        same("tail", await log.tail(self.key), (str(len(model.entries) or ""), bool(model.end)))
        for place in range(len(model.entries) + 1):
            reader = await log.read(self.key, after=str(place or ""))
            await check_reader(reader, model, place)
        await self._compare_beyond(log)

    async def _compare_beyond(self, log: StreamLog) -> None:
        """A place beyond the last entry is refused, unless the entry may have been lost with its producer."""
        beyond = str(len(self.model.entries) + 1)
        if self.model.end == "lost":
            check_end(await drained(await log.read(self.key, after=beyond)), [], self.model)
        else:
            await refuses(InvalidLastEventID.__name__, log.read(self.key, after=beyond))
        if self.model.end:
            same("after the end", await drained(await log.read(self.key, after=END_ID)), ([], None))
        else:
            await refuses(InvalidLastEventID.__name__, log.read(self.key, after=END_ID))

    async def _compare_producer(self, process: int) -> None:
        watched, producer = self._watched[process], self.model.producers[process]
        if watched is not None and producer is not None:
            reasons = [watched.stopped.get_nowait() for _ in range(watched.stopped.qsize())]
            same("stopped", reasons, [producer.stopped] if producer.stopped else [])
            same("lost, left", (watched.lost.is_set(), watched.left.is_set()), (producer.lost, False))

    async def _finish(self, process: int, model: Model) -> None:
        """Reads what the client of a process has not had yet."""
        reader, client = self._readers[process], model.clients[process]
        self._readers[process] = None
        if reader is None:
            return
        if client.stream != model.stream or model.expired:  # an open reader is not closed by what comes later
            await reader.aclose()
        elif client.at_end:
            same("a reader at the end", await drained(reader), ([], None))
        else:
            await check_reader(reader, model, client.place)


async def check_reader(reader: Reader, model: Model, place: int) -> None:
    """Checks that *reader* gives what is behind *place*, and no more, and closes it."""
    behind = list(model.entries[place:])
    if model.end:
        check_end(await drained(reader), behind, model)
        return
    got: list[str] = []
    while len(got) < len(behind):
        batch = await anext(aiter(reader))
        same("the place of a batch", batch.first, place + len(got) + 1)
        got += [each.data.decode() for each in batch.entries]
        same("the end of a batch", batch.end, None)
    same("entries", got, behind)
    await reader.aclose()


async def drained(reader: Reader) -> tuple[list[str], End | None]:
    """The texts that are left, and the end."""
    got: list[str] = []
    end, place = None, None
    async for batch in reader:
        same("the end comes last", end, None)
        if place is not None:
            same("the place of a batch", batch.first, place)
        place = batch.first + len(batch.entries)
        got += [each.data.decode() for each in batch.entries]
        end = batch.end
    await reader.aclose()
    return got, end


def check_end(got: tuple[list[str], End | None], behind: list[str], model: Model) -> None:
    """Checks the rest of a stream that has ended."""
    same("entries", got[0], behind)
    if model.end == "completed":
        same("the end", got[1], COMPLETED)
    else:
        check_lost(got[1])


async def refuses(name: str, awaitable: Awaitable[object]) -> None:
    """Checks that *awaitable* raises the error *name*."""
    expected: type[OpenAISSEError] = getattr(errors, name)
    try:
        result = await awaitable
    except expected:
        return
    raise AssertionError(f"{name} was not raised, but {result!r} returned")


def same(what: str, got: object, expected: object) -> None:
    """Checks that two values are equal."""
    if got != expected:
        raise AssertionError(f"{what}: {got!r} instead of {expected!r}")


def entry(text: str) -> Entry:
    """A plain chunk."""
    return Entry(text.encode(), 0.5)


__all__ = ["KeyReused", "Run"]
