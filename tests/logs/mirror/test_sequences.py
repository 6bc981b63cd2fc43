"""All sequences of operations of two processes on one store do what the model says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quart_openai_sse.logs.memory import MemoryLog
from tests.conftest import Clock
from tests.logs.mirror.sequences.model import sequences
from tests.logs.mirror.sequences.waves import Result, run_all, run_these
from tests.logs.mirror.sequences.worlds import in_memory, in_redis
from tests.logs.mirror.virtual_time import run
from tests.redis_servers import redis_server


class OneProcess:
    """The memory log for both."""

    def __init__(self) -> None:
        self.clock = Clock()
        log = MemoryLog(clock=self.clock)
        self.logs = (log, log)

    async def lose(self, streams: list[tuple[str, int]]) -> None:
        assert not streams

    async def expire(self) -> None:
        self.clock.now += 301


@asynccontextmanager
async def one_process() -> AsyncIterator[OneProcess]:
    world = OneProcess()
    yield world
    await world.logs[0].aclose()


def check(result: Result, number: int) -> None:
    assert [(failed.sequence, failed.failure) for failed in result.failed] == []
    assert result.lengths.total() == number


def test_the_model_is_what_the_memory_log_does() -> None:
    wanted = [each for each in sequences(4) if not any(name == "lose" for name, _ in each)]
    check(run(run_these(one_process, wanted)), len(wanted))


def test_in_memory() -> None:
    check(run(run_all(in_memory, 3)), 211)


@pytest.mark.slow
def test_longer_ones_in_memory() -> None:
    check(run(run_all(in_memory, 4)), 1903)


@pytest.mark.slow
async def test_on_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        check(await run_all(in_redis(server), 3), 211)
