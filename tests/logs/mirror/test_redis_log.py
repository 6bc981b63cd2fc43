"""The mirrored log keeps the contract on Redis: one log, two logs, two logs on a cluster."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.logs.mirror import Processes
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.logs.mirror.redis import RedisStore, redis_log
from quart_openai_sse.testing import StreamLogContract
from tests.logs.two_processes import WithoutTwoProcesses, WithTwoProcesses
from tests.redis_servers import Server, redis_cluster, redis_server

PREFIXES = count()
LEASE = 0.2
MAX_BYTES = 16 << 20

pytestmark = pytest.mark.slow


class Clock:
    """The time, and what a test adds to it."""

    later = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.later


class FreezableStore(RedisStore):
    """A store that does not wait long, and whose process a test can keep from renewing its lease."""

    deadline = 0.6
    socket_timeout = 0.25

    def __init__(self, url: str, *, prefix: str) -> None:
        super().__init__(url, prefix=prefix)
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def renew(self, lease: float) -> Processes:
        await self.thawed.wait()
        return await super().renew(lease)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield [server]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield list(servers)


class TestInOneProcess(WithoutTwoProcesses, StreamLogContract):
    """One log. The tests that need a second process are in the class below."""

    max_bytes = MAX_BYTES
    timeout = 30

    @pytest.fixture
    def log(self, servers: list[Server]) -> MirrorLog:
        return self.new_log(servers, servers[0].url)

    def new_log(self, servers: list[Server], url: str) -> MirrorLog:
        self.servers, self.clock = servers, Clock()
        self.config = Config(max_bytes=MAX_BYTES, log=url, log_prefix=f"log{next(PREFIXES)}", log_lease=LEASE)
        return self.same_log()

    def same_log(self) -> MirrorLog:
        store = FreezableStore(self.config.log, prefix=self.config.log_prefix)
        log = MirrorLog(store, self.config, lease=LEASE)
        log.memory.clock = self.clock
        return log

    @asynccontextmanager
    async def unreachable(self, log: MirrorLog) -> AsyncIterator[None]:
        for server in self.servers:
            server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for server in self.servers:
                server.process.send_signal(signal.SIGCONT)

    async def expire(self, log: MirrorLog) -> None:
        self.clock.later += 301
        for server, key in self.states():
            if server.send("HEXISTS", key, "e"):
                server.send("DEL", key.replace(b":state", b":batches"))

    async def lose(self, log: MirrorLog) -> None:
        for stream in log._own.all():  # a reader in this process may have had entries that are not stored
            await stream.written_out(1)
        third = self.same_log()
        await third.open()
        await self.lose_to_another(log)
        while self.is_registered(log.process):
            await asyncio.sleep(LEASE / 10)
        await third.aclose()

    async def lose_to_another(self, log: MirrorLog) -> None:
        """Waits until another process has claimed the streams of *log*, or forgotten its process."""
        had = self.writes(log.process)
        log.store.thawed.clear()
        self.server_of_leases().send("ZADD", self.leases, 0, log.process)
        while self.is_registered(log.process) and (not had or self.writes(log.process)):
            await asyncio.sleep(LEASE / 10)
        log.store.thawed.set()

    @property
    def leases(self) -> str:
        return f"{self.config.log_prefix}:1:{{processes}}:leases"

    def is_registered(self, process: str) -> bool:
        """Whether the process has a lease, valid or not."""
        return self.server_of_leases().send("ZSCORE", self.leases, process) not in (None, b"", b"-1")

    def writes(self, process: str) -> bool:
        """Whether a running stream has a writer of *process*."""
        states = [server.send("HMGET", key, "w", "e") for server, key in self.states()]
        return any(writer and not ended and writer.startswith(process.encode()) for writer, ended in states)

    def states(self) -> list[tuple[Server, bytes]]:
        pattern = f"{self.config.log_prefix}:1:*:state"
        return [(server, key) for server in self.servers for key in server.send("KEYS", pattern)]

    def server_of_leases(self) -> Server:
        return self.servers[0]


class TestInTwoProcesses(WithTwoProcesses, TestInOneProcess):
    """Two logs on one server."""

    def other(self, log: MirrorLog) -> MirrorLog:
        return self.same_log()

    async def lose(self, log: MirrorLog) -> None:
        await self.lose_to_another(log)


class TestInACluster(TestInTwoProcesses):
    """Two logs on a cluster of three nodes."""

    @pytest.fixture
    def log(self, nodes: list[Server]) -> MirrorLog:
        return self.new_log(nodes, nodes[0].url.replace("redis://", "redis+cluster://"))

    def server_of_leases(self) -> Server:
        slot = int(self.servers[0].send("CLUSTER", "KEYSLOT", "{processes}"))
        return self.servers[slot * len(self.servers) // 16384]


async def test_the_log_of_the_options(servers: list[Server]) -> None:
    log = redis_log(Config(log=servers[0].url, log_prefix="options", log_lease=7))
    await log.open()
    assert await log.ready()
    assert servers[0].send("ZCARD", "options:1:{processes}:leases") == 1
    await log.aclose()
    assert servers[0].send("ZCARD", "options:1:{processes}:leases") == 0
