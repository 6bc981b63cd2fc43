"""The faults of Redis, on real servers: paused, killed, emptied, full, moved, loading, slow, behind a dead network."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from tests.chaos.shared.proxy import StoreProxy, store_proxy
from tests.chaos.shared.scene import Fault, Scene, Stage, nothing
from tests.chaos.shared.worker_faults import clock_jumps, frozen, frozen_briefly, killed
from tests.redis_servers import Server, free_ports, redis_server, redis_with_sentinel

PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always")
Block = Callable[[Scene], AbstractAsyncContextManager[None]]


# Stages ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def alone(
    folder: Path, *, strike: Callable[[Server, Scene], AbstractAsyncContextManager[None]]
) -> AsyncIterator[Stage]:
    """One server that stores nothing on disk."""
    with redis_server(folder / "redis") as server:
        yield Stage(server.url, partial(strike, server))


@asynccontextmanager
async def with_worker(folder: Path, *, strike: Block) -> AsyncIterator[Stage]:
    """One server; the fault is of a worker."""
    with redis_server(folder / "redis") as server:
        yield Stage(server.url, strike)


@asynccontextmanager
async def restarted(folder: Path, *options: str, away: float, load: int = 0) -> AsyncIterator[Stage]:
    """A server that is killed, and starts again after *away* seconds; then it loads for so many more."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(folder / "redis", *options))

        @asynccontextmanager
        async def strike(scene: Scene) -> AsyncIterator[None]:
            slow: tuple[str, ...] = ()
            if load:
                server.send("EVAL", "for i = 1, ARGV[1] do redis.call('SET', 'junk:' .. i, i) end", 0, load * 1000)
                server.send("BGREWRITEAOF")
                while server.send("INFO", "persistence")["aof_rewrite_in_progress"]:  # type: ignore[index]
                    await asyncio.sleep(0.05)
                slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
            server.kill()

            async def later() -> None:
                await asyncio.sleep(away)
                ready = b"erver initialized" if load else b"eady to accept"
                stack.enter_context(redis_server(folder / "redis", *options, *slow, ready=ready))

            back = asyncio.ensure_future(later())
            try:
                yield
            finally:
                await back

        yield Stage(server.url, strike)


@asynccontextmanager
async def behind_proxy(
    folder: Path, *, strike: Callable[[StoreProxy, Scene], AbstractAsyncContextManager[None]]
) -> AsyncIterator[Stage]:
    """A server behind a proxy."""
    (port,) = free_ports(1)
    with redis_server(folder / "redis", port=port):
        async with store_proxy(port) as proxy:
            yield Stage(proxy.url, partial(strike, proxy))


@asynccontextmanager
async def moved(folder: Path) -> AsyncIterator[Stage]:
    """A server whose replica takes its place, at the same address."""
    first, second = free_ports(2)
    fast = ("--repl-diskless-sync-delay", 0, "--repl-ping-replica-period", 1)
    with (
        redis_server(folder / "first", *fast, port=first) as master,
        redis_server(folder / "second", *fast, "--replicaof", f"127.0.0.1 {first}", port=second) as replica,
    ):
        async with store_proxy(first) as proxy:

            @asynccontextmanager
            async def strike(scene: Scene) -> AsyncIterator[None]:
                replica.send("REPLICAOF", "NO", "ONE")
                master.send("REPLICAOF", "127.0.0.1", second)
                await asyncio.sleep(1)  # until now the address leads to what is a replica
                proxy.move(second)
                yield

            yield Stage(proxy.url, strike)


@asynccontextmanager
async def sentinel(folder: Path) -> AsyncIterator[Stage]:
    """A server that is killed, a replica, and the Sentinel that puts it into its place."""
    with redis_with_sentinel(folder / "redis") as (master, _replica, port):

        @asynccontextmanager
        async def strike(scene: Scene) -> AsyncIterator[None]:
            master.kill()
            yield

        yield Stage(f"redis+sentinel://127.0.0.1:{port}/streams", strike)


# Strikes --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def paused(server: Server, scene: Scene) -> AsyncIterator[None]:
    """It is there, and says nothing."""
    with server.paused():
        yield


@asynccontextmanager
async def paused_and_killed(server: Server, scene: Scene) -> AsyncIterator[None]:
    """It says nothing, and the first worker is killed meanwhile."""
    with server.paused():
        await scene.first.kill()
        yield


@asynccontextmanager
async def emptied(server: Server, scene: Scene) -> AsyncIterator[None]:
    """FLUSHDB."""
    server.send("FLUSHDB")
    yield


@asynccontextmanager
async def full(server: Server, scene: Scene) -> AsyncIterator[None]:
    """Every write is refused."""
    server.send("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.send("CONFIG", "SET", "maxmemory", "1mb")
    yield
    server.send("CONFIG", "SET", "maxmemory", "0")


@asynccontextmanager
async def evicting(server: Server, scene: Scene) -> AsyncIterator[None]:
    """What was not used for the longest time is removed, again and again."""
    server.send("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.send("CONFIG", "SET", "maxmemory", "3mb")

    async def fill() -> None:
        for number in range(100_000):
            with contextlib.suppress(Exception):  # for a moment there may be nothing left to remove
                server.send("SET", f"junk:{number}", os.urandom(100_000))
            await asyncio.sleep(0.01)

    filling = asyncio.ensure_future(fill())
    yield
    filling.cancel()
    await asyncio.wait([filling])
    server.send("CONFIG", "SET", "maxmemory", "0")
    scene.seen["evicted keys"] = [str(server.send("INFO", "stats")["evicted_keys"])]  # type: ignore[index]


@asynccontextmanager
async def swallowed(proxy: StoreProxy, scene: Scene) -> AsyncIterator[None]:
    """Packets vanish; connections from before are dead ever after."""
    proxy.swallow(True)
    yield
    proxy.swallow(False)


@asynccontextmanager
async def slow(proxy: StoreProxy, scene: Scene) -> AsyncIterator[None]:
    """Every command takes 200 ms."""
    proxy.delay = 0.2
    yield


REDIS: Mapping[str, Fault] = {
    "no fault": Fault(partial(with_worker, strike=nothing), 2),
    "a worker is killed (kill -9)": Fault(partial(with_worker, strike=killed), 6, "killed", is_quick=True),
    "a worker is frozen for 6 s (SIGSTOP)": Fault(partial(with_worker, strike=frozen), 6, "frozen"),
    "a worker is frozen for 1 s (SIGSTOP)": Fault(partial(with_worker, strike=frozen_briefly), 3),
    "a worker is killed while Redis is paused for 4 s": Fault(partial(alone, strike=paused_and_killed), 4, "killed"),
    "a worker's clock jumps by 60 s": Fault(
        partial(with_worker, strike=clock_jumps), 6, environment={"CHAOS_JUMP": "60"}
    ),
    "a worker's clock jumps back by 60 s": Fault(
        partial(with_worker, strike=clock_jumps), 6, environment={"CHAOS_JUMP": "-60"}
    ),
    "Redis is paused for 3 s": Fault(partial(alone, strike=paused), 3, is_quick=True),
    "Redis is paused for 10 s": Fault(partial(alone, strike=paused), 10),
    "Redis is killed, and back after 2 s, empty": Fault(partial(restarted, away=2), 4, is_quick=True),
    "Redis is killed, and back after 10 s, empty": Fault(partial(restarted, away=10), 12),
    "Redis is killed, and back after 2 s with its data": Fault(
        partial(lambda folder: restarted(folder, *PERSISTENT, away=2)), 4
    ),
    "Redis is killed, and loads its data for 5 s": Fault(
        lambda folder: restarted(folder, *PERSISTENT, away=1, load=5), 8
    ),
    "FLUSHDB": Fault(partial(alone, strike=emptied), 3),
    "Redis is full (noeviction)": Fault(partial(alone, strike=full), 5),
    "Redis evicts keys (allkeys-lru)": Fault(partial(alone, strike=evicting), 5),
    "a replica takes the address": Fault(moved, 3),
    "Sentinel puts a replica into the place of a killed server": Fault(sentinel, 8),
    "packets vanish for 10 s": Fault(partial(behind_proxy, strike=swallowed), 10),
    "each command takes 200 ms": Fault(partial(behind_proxy, strike=slow), 5),
}
"""By name. With a lease of 2 s instead of 15."""
