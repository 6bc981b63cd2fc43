"""The bytes in a shared store."""

from __future__ import annotations

import pytest

from quart_openai_sse.errors import LogUnavailable
from quart_openai_sse.logs.compact import CompactEntries, Run
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.logs.mirror.wire import Wire
from quart_openai_sse.testing.log_contract_base import about

CHUNK = (
    b'{"id":"chatcmpl-A1b2C3d4E5f6G7h8I9j0K1l2M3n4O","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-5-mini","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}]}'
)
CIPHER = (lambda data: b"sealed" + data, lambda data: data[6:])


@pytest.mark.parametrize("wire", [Wire(), Wire(CIPHER)], ids=["plain", "with a cipher"])
@pytest.mark.parametrize("number", [1, 3, 1000])
def test_a_batch_of_runs_is_read_as_its_entries(wire: Wire, number: int) -> None:
    entries = [Entry(CHUNK % (b"word%d \xff" % place), place / 7) for place in range(number)]
    kept = CompactEntries()
    kept.extend(entries)
    runs = kept.runs(0, 1 << 30)
    assert runs is not None
    batch = wire.batch_of_runs(5, runs)
    assert wire.read_batch(batch) == (5, entries)
    assert len(batch) < len(CHUNK) * max(number / 5, 1.2) + 40


def test_a_batch_of_runs_that_was_damaged_is_refused() -> None:
    wire = Wire()
    with pytest.raises(LogUnavailable, match="cannot read"):
        wire.read_batch(wire.batch_of_runs(1, [Run(b"a", b"b", [b"c"], [0.5, 1.5])]))


def test_a_log_line_says_that_streams_cannot_be_decrypted_but_not_for_each_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sealed = Wire(CIPHER).about(about())
    wire = Wire()
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            wire.read_about(sealed)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no log_cipher" in caplog.text
