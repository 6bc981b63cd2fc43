"""The tables of logs without HTTP: many live streams, many idle readers, memory in Redis, and latency."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis as Client

from tests.benchmarks.measure import Sample, cpu_seconds
from tests.benchmarks.shared.processes import Process, start_process
from tests.benchmarks.shared.workers import Redis, start_redis


@asynccontextmanager
async def client_of(redis: Redis) -> AsyncIterator[Client]:
    """To ask the server what it holds."""
    client: Client = Client.from_url(redis.address)
    try:
        yield client
    finally:
        await client.aclose()


async def live(number: int, cache: Path, *, streams: int, rate: float, seconds: float) -> AsyncIterator[Sample]:
    """Writers in one process, as many readers in another one."""
    rows = [("memory log, both in one process", "memory://"), ("Redis log", "")]
    for name, address in rows if number % 2 else reversed(rows):
        async with start_redis() as redis, start_process(address or redis.address, cache) as writer:
            if address:
                yield await _live(name, number, redis, writer, writer, streams, rate, seconds)
            else:
                async with start_process(redis.address, cache) as reader:
                    yield await _live(name, number, redis, writer, reader, streams, rate, seconds)


async def _live(
    name: str, number: int, redis: Redis, writer: Process, reader: Process, streams: int, rate: float, seconds: float
) -> Sample:
    await writer.do("create", streams=streams)
    await reader.do("follow", streams=streams)
    await writer.do("produce", rate=rate, seconds=1.0)
    pids = {"writer": writer.pid, "reader": reader.pid, "redis": redis.pid}
    before, begin = {role: cpu_seconds([pid]) for role, pid in pids.items()}, time.monotonic()
    await writer.do("produce", rate=rate, seconds=seconds)
    passed = time.monotonic() - begin
    used = {role: (cpu_seconds([pid]) - before[role]) / passed for role, pid in pids.items()}
    appended = (await writer.do("state"))["appended"]
    await reader.do("until", read=appended)
    if reader is writer:
        del used["reader"]
    problems = [] if (await reader.do("state"))["read"] == appended else ["entries were lost"]
    cores = {"cores": sum(used.values()), **used, "us": sum(used.values()) * 1e6 / rate / streams}
    return Sample(name, "live", number, cores, problems)


async def idle(number: int, cache: Path, *, readers: int) -> AsyncIterator[Sample]:
    """Readers that wait: for nothing, in the writer's process, and in another process."""
    async with start_redis() as redis:
        async with start_process("memory://", cache) as process:
            await process.do("wait_alone", tasks=100)
            before = (await process.do("state"))["rss"]
            await process.do("wait_alone", tasks=readers)
            bare = ((await process.do("state"))["rss"] - before) / readers
            yield Sample("a task that waits", "idle", number, {"kb": bare})
        async with start_process("memory://", cache) as process:
            await process.do("create", streams=readers)
            await process.do("append", entries=3)
            before = (await process.do("state"))["rss"]
            await process.do("follow", streams=readers)
            await process.do("until", read=3 * readers)
            kilobytes = ((await process.do("state"))["rss"] - before) / readers
            cpu = (await process.do("idle", seconds=5))["cpu"]
            yield Sample("memory log", "idle", number, {"kb": kilobytes, "above": kilobytes - bare, "idle": cpu})
        async with start_process(redis.address, cache) as writer, start_process(redis.address, cache) as reader:
            await writer.do("create", streams=readers)
            await writer.do("append", entries=3)
            before = (await reader.do("state"))["rss"]
            used = (await reader.do("state"))["cpu"]
            await reader.do("follow", streams=readers)
            await reader.do("until", read=3 * readers)
            state = await reader.do("state")
            kilobytes, opened = (state["rss"] - before) / readers, state["cpu"] - used
            await asyncio.sleep(1)
            idle = (await reader.do("idle", seconds=5))["cpu"]
            figures = {"kb": kilobytes, "above": kilobytes - bare, "open": opened, "idle": idle}
            yield Sample("Redis log, elsewhere", "idle", number, figures | await _cut(redis, writer, reader, readers))


async def _cut(redis: Redis, writer: Process, reader: Process, readers: int) -> dict[str, float]:
    """Cuts the connections that messages come over, and has an entry written to every stream at once."""
    async with client_of(redis) as client:
        channels = (await client.info("stats"))["pubsub_channels"]
        used, begin = (await reader.do("state"))["cpu"], time.monotonic()
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await writer.do("append", entries=1)
        await reader.do("until", read=4 * readers)
        back = time.monotonic() - begin
        while (await client.info("stats"))["pubsub_channels"] < channels:
            await asyncio.sleep(0.01)
        subscribed = time.monotonic() - begin
        await asyncio.sleep(1)
        return {"back": max(back, subscribed), "back_cpu": (await reader.do("state"))["cpu"] - used}


async def memory(number: int, cache: Path) -> AsyncIterator[Sample]:
    """What Redis holds of streams."""
    for name, streams, follow in (("nobody reads elsewhere", 100, False), ("a reader elsewhere", 100, True)):
        async with (
            start_redis() as redis,
            client_of(redis) as client,
            start_process(redis.address, cache) as writer,
            start_process(redis.address, cache) as reader,
        ):
            before = await _used(client)
            await writer.do("create", streams=streams)
            if follow:
                await reader.do("follow", streams=streams)
            await writer.do("produce", rate=20.0, seconds=10.0)
            await writer.do("end")
            if follow:
                await reader.do("until", ended=streams)
            await asyncio.sleep(1.5)
            raw = (await writer.do("state"))["bytes"]
            yield Sample(name, "memory", number, await _held(client, before, raw, streams))
    async with start_redis() as redis, client_of(redis) as client, start_process(redis.address, cache) as writer:
        before = await _used(client)
        await writer.do("create", streams=1000)
        await writer.do("append", entries=3)
        await asyncio.sleep(1)
        raw = (await writer.do("state"))["bytes"]
        yield Sample("three entries, live", "memory", number, await _held(client, before, raw, 1000))
        await writer.do("end")
        await asyncio.sleep(1)
        yield Sample("three entries, ended", "memory", number, await _held(client, before, raw, 1000))


async def _held(client: Client, before: int, raw: int, streams: int) -> dict[str, float]:
    used = await _used(client) - before
    keys = [key async for key in client.scan_iter(count=1000)]
    by_key = 0
    for key in keys:
        by_key += await client.memory_usage(key, samples=0) or 0
    return {
        "usage": by_key / raw,
        "used": used / raw,
        "usage_bytes": by_key / streams,
        "used_bytes": used / streams,
        "keys": len(keys) / streams,
    }


async def latency(number: int, cache: Path, *, entries: int) -> AsyncIterator[Sample]:
    """From an append to a reader in another process."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        async with start_redis() as redis:
            rows = [("Redis log", redis.address), ("SQLite log", f"sqlite:///{folder}/streams.db")]
            for name, address in rows:
                async with start_process(address, cache) as writer, start_process(address, cache) as reader:
                    await writer.do("create", streams=1)
                    await writer.do("append", entries=1)
                    await reader.do("follow", streams=1)
                    await reader.do("until", read=1)
                    await writer.do("stamped", count=entries, gap=0.017)
                    await reader.do("until", read=entries + 1)
                    delays = (await reader.do("state"))["delays"]
                    yield Sample(name, "latency", number, percentiles([each / 1e6 for each in delays]))


async def _used(client: Client) -> int:
    """What Redis has allocated, without the buffers of its clients."""
    memory = await client.info("memory")
    return int(memory["used_memory"] - memory["mem_clients_normal"])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, and the value that one in twenty exceeds."""
    cuts = statistics.quantiles(values, n=20)
    return {"p50": cuts[9], "p95": cuts[18], "highest": max(values)}
