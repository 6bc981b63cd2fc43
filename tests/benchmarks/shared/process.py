"""One worker's log without HTTP, as a program: it is told on its input what to do, one JSON object per line.

`python -m tests.benchmarks.shared.process ADDRESS`, where the address is a value of the option `log`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop

from quart_openai_sse.config import Config
from quart_openai_sse.logs import About, End, Entry, StreamLog, Writer
from tests.benchmarks.measure import resident_kilobytes
from tests.benchmarks.shared.text import chunks

TICK = 0.002


def create_log(address: str) -> StreamLog:
    """The log that the option would make."""
    config = Config(log=address)
    if address.startswith("redis"):
        from quart_openai_sse.logs.mirror.redis import redis_log

        return redis_log(config)
    if address.startswith("sqlite"):
        from quart_openai_sse.logs.mirror.sqlite import sqlite_log

        return sqlite_log(config)
    from quart_openai_sse.logs.memory import MemoryLog

    return MemoryLog.from_config(config)


class Worker:
    """The streams that it writes, and those that it reads."""

    def __init__(self, log: StreamLog) -> None:
        self.log = log
        self.writers: list[Writer] = []
        self.appended = self.bytes = self.read = self.ended = 0
        self.delays: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def create(self, streams: int, prefix: str = "stream", digest: bool = False) -> None:
        """Begins streams, and returns when other workers can find them."""
        made = []
        for number in range(streams):
            key = f"{prefix}-{number}"
            about = About(id=key, owner="alice", model="gpt-4o-mini", created=time.time())
            writer = await self.log.create(key, about=about, digest="d" * 32 if digest else "", retain=True)
            assert writer is not None
            made.append(writer)
        for writer in made:
            await writer.stored()
        self.writers += made

    async def append(self, entries: int) -> None:
        """Adds so many entries to every stream, each by itself."""
        for writer in self.writers:
            for data in chunks(entries):
                self._append(writer, data)
        await asyncio.sleep(0)

    async def produce(self, rate: float, seconds: float) -> dict[str, float]:
        """Adds so many entries a second to every stream, at moments of its own; the CPU time it took."""
        data, streams = chunks(1000), len(self.writers)
        used, begin = time.process_time(), time.monotonic()
        done, total = 0, int(streams * rate * seconds)
        while done < total:
            await asyncio.sleep(TICK)
            due = min(int((time.monotonic() - begin) * rate * streams), total)
            for number in range(done, due):
                self._append(self.writers[number % streams], data[number // streams % 1000])
            done = due
        return {"cpu": time.process_time() - used, "seconds": time.monotonic() - begin}

    def _append(self, writer: Writer, data: bytes) -> None:
        writer.append((Entry(data),))
        self.appended += 1
        self.bytes += len(data)

    async def stamped(self, count: int, gap: float) -> None:
        """Adds entries that say when they were added, to the first stream."""
        for _ in range(count):
            self.writers[0].append((Entry(b'{"at":%d}' % time.monotonic_ns()),))
            await asyncio.sleep(gap)

    async def end(self) -> None:
        """Ends all streams."""
        for writer in self.writers:
            await writer.close(End("completed", finish_reasons={0: "stop"}))

    async def follow(self, streams: int, prefix: str = "stream", heartbeat: float = 15.0) -> None:
        """Opens a reader of each, as a response has one."""
        for number in range(streams):
            reader = await self.log.read(f"{prefix}-{number}", heartbeat=heartbeat)
            self.tasks.append(asyncio.ensure_future(self._follow(reader)))

    async def _follow(self, reader: Any) -> None:
        async for batch in reader:
            self.read += len(batch.entries)
            if len(batch.entries) == 1 and batch.entries[0].data.startswith(b'{"at":'):
                self.delays.append(time.monotonic_ns() - json.loads(batch.entries[0].data)["at"])
            if batch.end is not None:
                self.ended += 1
        await reader.aclose()

    async def wait_alone(self, tasks: int) -> None:
        """Tasks that wait for a timer or an event, as a bare stream of Quart does: what is left beside a reader."""

        async def wait() -> None:
            event = asyncio.Event()
            try:
                async with asyncio.timeout(3600):
                    await event.wait()
            finally:
                del event

        self.tasks += [asyncio.ensure_future(wait()) for _ in range(tasks)]
        await asyncio.sleep(0.1)

    async def until(self, read: int = 0, ended: int = 0) -> dict[str, float]:
        """Returns when its readers have had so many entries and ends; the seconds that took."""
        begin, used = time.monotonic(), time.process_time()
        async with asyncio.timeout(60):
            while self.read < read or self.ended < ended:
                await asyncio.sleep(0.005)
        return {"seconds": time.monotonic() - begin, "cpu": time.process_time() - used}

    async def idle(self, seconds: float) -> dict[str, float]:
        """The CPU time while nothing happens."""
        used = time.process_time()
        await asyncio.sleep(seconds)
        return {"cpu": time.process_time() - used}

    async def state(self) -> dict[str, Any]:
        """What there is by now."""
        gc.collect()
        counts = {"appended": self.appended, "bytes": self.bytes, "read": self.read, "ended": self.ended}
        times = {"cpu": time.process_time(), "now": time.monotonic()}
        return {**counts, **times, "rss": resident_kilobytes([os.getpid()]), "delays": self.delays}


async def main(address: str) -> None:
    """Does what it is told until its input ends."""
    log = create_log(address)
    await log.open()
    worker = Worker(log)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    while line := await lines.readline():
        told: dict[str, Any] = msgspec.json.decode(line)
        do: Callable[..., Awaitable[Any]] = getattr(worker, told.pop("do"))
        sys.stdout.write(json.dumps(await do(**told) or {}) + "\n")
        sys.stdout.flush()
    await log.aclose()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
