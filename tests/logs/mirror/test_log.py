"""The mirrored log keeps the contract, on a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from quart_openai_sse.config import Config
from quart_openai_sse.logs.mirror.log import MirrorLog
from quart_openai_sse.testing import StreamLogContract
from tests.conftest import Clock
from tests.logs.mirror.memory_store import MemoryStore, SharedMemory

LEASE = 0.2
MAX_BYTES = 16 << 20
CONFIG = Config(max_bytes=MAX_BYTES)


class TestInOneProcess(StreamLogContract):
    """One log. The tests that need a second process are in the class below."""

    max_bytes = MAX_BYTES
    test_the_readers_of_a_dead_process_do_not_keep_a_stream = None
    test_closing_a_log_ends_no_stream_of_another_process = None

    @pytest.fixture
    def log(self) -> MirrorLog:
        self._others: list[MemoryStore] = []
        return MirrorLog(MemoryStore(SharedMemory()), CONFIG, lease=LEASE)

    @asynccontextmanager
    async def unreachable(self, log: MirrorLog) -> AsyncIterator[None]:
        stores = [log.store, *self._others]
        for store in stores:
            store.disconnect()
        try:
            yield
        finally:
            for store in stores:
                store.connect()


class TestInTwoProcesses(TestInOneProcess):
    """Two logs on the same store."""

    test_the_readers_of_a_dead_process_do_not_keep_a_stream = (
        StreamLogContract.test_the_readers_of_a_dead_process_do_not_keep_a_stream
    )
    test_closing_a_log_ends_no_stream_of_another_process = (
        StreamLogContract.test_closing_a_log_ends_no_stream_of_another_process
    )

    def other(self, log: MirrorLog) -> MirrorLog:
        store = MemoryStore(log.store.memory)
        self._others.append(store)
        return MirrorLog(store, CONFIG, lease=LEASE)
