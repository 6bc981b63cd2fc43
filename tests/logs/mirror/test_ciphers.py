"""Processes whose ciphers are different, or fail."""

from __future__ import annotations

import asyncio

import pytest

from quart_openai_sse.errors import LogUnavailable
from tests.logs.mirror.processes import Processes, begin, in_virtual_time


def broken(data: bytes) -> bytes:
    """Does not encrypt."""
    raise RuntimeError("No key.")


@in_virtual_time
async def test_a_list_has_the_streams_that_can_be_read_beside_one_that_cannot(processes: Processes) -> None:
    one, two = await processes.new(), await processes.new(cipher=(lambda data: data, lambda data: data))
    await begin(one, "a", "one", owner="ann", id="a")
    await begin(two, "b", "two", owner="ann", id="b")
    assert [each.id for each in await two.find("ann")] == ["b", "a"]
    assert [each.id for each in await one.find("ann")] == ["a"]


@pytest.mark.parametrize("digest", ["", "digest"], ids=["without a key", "with a key"])
def test_a_stream_that_cannot_be_encrypted_is_refused(digest: str, caplog: pytest.LogCaptureFixture) -> None:
    @in_virtual_time
    async def run(processes: Processes) -> None:
        log = await processes.new(cipher=(broken, broken))
        with pytest.raises(LogUnavailable):
            await begin(log, "a", digest=digest)
        await asyncio.sleep(10)

    run()
    assert [record.message for record in caplog.records if "cannot be stored" in record.message]
    assert "a task of the stream log failed" not in caplog.text
