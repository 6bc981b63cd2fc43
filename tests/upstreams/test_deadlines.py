"""The deadlines of an upstream's answer."""

from __future__ import annotations

import asyncio

from quart_openai_sse.upstreams.deadlines import Deadlines


class Asked:
    """The progress of an answer that has not begun. It counts how often it was checked."""

    fed = 0.0
    checks = 0

    @property
    def started(self) -> bool:
        self.checks += 1
        return False


async def test_a_gap_of_no_seconds_makes_no_busy_loop() -> None:
    progress = Asked()
    async with Deadlines(total=60, first_output=60, gap=0, progress=progress):
        for _ in range(1000):  # turns of the event loop, which take much less time than 1000 checks
            await asyncio.sleep(0)
    assert progress.checks < 500
