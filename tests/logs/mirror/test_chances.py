"""Two processes with random faults: no reader gets an entry that is wrong, lost, repeated or out of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.logs.mirror.chances.memory import play_in_virtual_time
from tests.logs.mirror.chances.redis import play_all
from tests.redis_servers import redis_server


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_in_memory(first: int) -> None:
    """`python -m tests.logs.mirror.chances --seed N` repeats a seed that fails."""
    for seed in range(first, first + 50):
        world = play_in_virtual_time(seed)
        assert not world.failures, "\n".join([f"seed {seed}:", *world.failures, "after", *world.steps])


@pytest.mark.slow
async def test_on_redis(tmp_path: Path) -> None:
    """`python -m tests.logs.mirror.chances --store redis --seed N` repeats what a seed does, but not its time."""
    with redis_server(tmp_path) as server:
        worlds = await play_all(server, range(50), 40)
    assert [(world.seed, world.failures, world.steps) for world in worlds if world.failures] == []
