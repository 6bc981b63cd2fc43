"""Two processes with random faults: no reader gets an entry that is wrong, lost, repeated or out of order."""

from __future__ import annotations

import pytest

from tests.logs.mirror.chances.memory import play_in_virtual_time


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_in_memory(first: int) -> None:
    """`python -m tests.logs.mirror.chances --seed N` repeats a seed that fails."""
    for seed in range(first, first + 50):
        world = play_in_virtual_time(seed)
        assert not world.failures, "\n".join([f"seed {seed}:", *world.failures, "after", *world.steps])
