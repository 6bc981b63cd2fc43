"""The mirrored log keeps the contract on Redis: one log, two logs, two logs on a cluster."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.logs.mirror.redis import RedisStore, redis_log
from quart_openai_sse.testing import StreamLogContract
from tests.redis_servers import Server, redis_cluster, redis_server

PREFIXES = count()
LEASE = 0.2
MAX_BYTES = 16 << 20

pytestmark = pytest.mark.slow


class Quick(RedisStore):
    """A store that does not wait long."""

    deadline = 1.0
    socket_timeout = 0.4


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield [server]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield list(servers)


class TestInOneProcess(StreamLogContract):
    """One log. The tests that need a second process are in the class below."""

    max_bytes = MAX_BYTES
    test_the_readers_of_a_dead_process_do_not_keep_a_stream = None
    test_closing_a_log_ends_no_stream_of_another_process = None

    @pytest.fixture
    def log(self, servers: list[Server]) -> MirrorLog:
        return self.new_log(servers, servers[0].url)

    def new_log(self, servers: list[Server], url: str) -> MirrorLog:
        self.running = servers
        self.config = Config(max_bytes=MAX_BYTES, log=url, log_prefix=f"log{next(PREFIXES)}", log_lease=LEASE)
        return self.same_log()

    def same_log(self) -> MirrorLog:
        store = Quick(self.config.log, prefix=self.config.log_prefix)
        return MirrorLog(store, self.config, lease=LEASE)

    @asynccontextmanager
    async def unreachable(self, log: MirrorLog) -> AsyncIterator[None]:
        for server in self.running:
            server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for server in self.running:
                server.process.send_signal(signal.SIGCONT)


class TestInTwoProcesses(TestInOneProcess):
    """Two logs on one server."""

    test_the_readers_of_a_dead_process_do_not_keep_a_stream = (
        StreamLogContract.test_the_readers_of_a_dead_process_do_not_keep_a_stream
    )
    test_closing_a_log_ends_no_stream_of_another_process = (
        StreamLogContract.test_closing_a_log_ends_no_stream_of_another_process
    )

    def other(self, log: MirrorLog) -> MirrorLog:
        return self.same_log()


class TestInACluster(TestInTwoProcesses):
    """Two logs on a cluster of three nodes."""

    @pytest.fixture
    def log(self, nodes: list[Server]) -> MirrorLog:
        return self.new_log(nodes, nodes[0].url.replace("redis://", "redis+cluster://"))


async def test_the_log_of_the_options(servers: list[Server]) -> None:
    log = redis_log(Config(log=servers[0].url, log_prefix="options", log_lease=7))
    await log.open()
    assert await log.ready()
    assert servers[0].send("ZCARD", "options:1:{processes}:leases") == 1
    await log.aclose()
    assert servers[0].send("ZCARD", "options:1:{processes}:leases") == 0
