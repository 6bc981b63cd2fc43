"""The store in Redis keeps its contract: on one server, in a cluster, behind Sentinel and TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from quart_openai_sse.logs.mirror.redis import RedisStore
from tests.logs.mirror.store_contract import StoreContract
from tests.redis_servers import Server, redis_cluster, redis_server

PREFIXES = count()

pytestmark = pytest.mark.slow


class Quick(RedisStore):
    """A store that does not wait long."""

    deadline = 1.0
    socket_timeout = 0.4


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield list(servers)


class TestOneServer(StoreContract):
    """One server, on a unix socket."""

    @pytest.fixture
    def servers(self, shared_server: Server) -> list[Server]:
        return [shared_server]

    @pytest.fixture
    def store(self, servers: list[Server]) -> RedisStore:
        for server in servers:
            server.send("FLUSHALL")
        self.running = servers
        # A cluster delivers messages up to some 100 ms late: those of the test before are about other keys.
        return Quick(self.url(servers), prefix=f"test{next(PREFIXES)}")

    def url(self, servers: list[Server]) -> str:
        return servers[0].url

    def other(self, store: RedisStore) -> RedisStore:
        return type(store)(store.url, prefix=store.prefix)

    async def cut(self, store: RedisStore) -> None:
        for server in self.running:
            server.send("CLIENT", "KILL", "TYPE", "pubsub")

    async def forget(self, store: RedisStore) -> None:
        for server in self.running:
            server.send("FLUSHALL")
            server.send("SCRIPT", "FLUSH")

    @asynccontextmanager
    async def unreachable(self, store: RedisStore) -> AsyncIterator[None]:
        for server in self.running:
            server.process.send_signal(19)
        try:
            yield
        finally:
            for server in self.running:
                server.process.send_signal(18)


class TestCluster(TestOneServer):
    """A cluster of three nodes."""

    @pytest.fixture
    def servers(self, shared_cluster: list[Server]) -> list[Server]:
        return shared_cluster

    def url(self, servers: list[Server]) -> str:
        return servers[0].url.replace("redis://", "redis+cluster://")
