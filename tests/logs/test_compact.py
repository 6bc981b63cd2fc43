"""Entries in little memory: each as it was, and the chunks of one stream in a fraction of their size."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quart_openai_sse.logs.compact import CompactEntries
from quart_openai_sse.logs.entries import Entry, Kind

CHUNK = (
    b'{"id":"chatcmpl-A1b2C3d4E5f6G7h8I9j0K1l2M3n4O","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-5-mini","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}]}'
)
SAME = b"a" * 40
THOUGHT = CHUNK.replace(b'"content"', b'"reasoning_content"')

data = st.binary(max_size=80) | st.builds(
    lambda shape, text: shape % text, st.sampled_from([CHUNK, THOUGHT]), st.sampled_from([b"", b"a", b" and"])
)
entries = st.builds(Entry, data, st.floats(0, 1e6), st.booleans()) | st.builds(
    Entry,
    data,
    st.floats(0, 1e6),
    kind=st.sampled_from([Kind.EVENT, Kind.ANSWER]),
    name=st.sampled_from(["", "sources"]),
)
groups = st.lists(st.lists(entries, max_size=5), max_size=8)


@given(groups, st.integers(0, 40), st.integers(1, 1000))
@example([[Entry(CHUNK % b"a")], [Entry(CHUNK % b"b")], [Entry(CHUNK[:-2])], [Entry(CHUNK % b"c")]], 0, 1 << 20)
@example([[Entry(b"a" * 64), Entry(b"a" * 64), Entry(b"a" * 40), Entry(b"a" * 100)]], 1, 1 << 20)
@example([[Entry(SAME + b"x" + SAME), Entry(SAME + b"y" + SAME), Entry(b"a" * 60)]], 0, 1 << 20)
def test_every_entry_is_read_as_it_was_added(added: list[list[Entry]], start: int, size: int) -> None:
    kept = CompactEntries()
    for group in added:
        kept.extend(group)
    expected = [entry for group in added for entry in group]
    assert len(kept) == len(expected)
    assert kept.batch(0, 1 << 40) == expected
    batch = kept.batch(start, size)
    assert batch == expected[start : start + len(batch)]
    runs = kept.runs(start, size)
    if any(entry.usage or entry.kind is not Kind.CHUNK for entry in batch):
        assert runs is None
    else:
        assert runs is not None
        whole = [(run.before + piece + run.after, t) for run in runs for piece, t in zip(*run[2:], strict=True)]
        assert [Entry(data, t) for data, t in whole] == batch
    sizes = [len(entry.data) for entry in batch]
    if sum(sizes) < size:  # there were no more
        assert len(batch) == max(0, len(expected) - start)
    else:
        assert sum(sizes[:-1]) < size


def test_the_first_chunk_of_a_run_shares_what_the_others_share() -> None:
    kept = CompactEntries()
    kept.extend([Entry(CHUNK % piece, 0.5) for piece in (b"a", b" and", b"b")])
    before, after = CHUNK.split(b"%b")
    assert kept.runs(0, 1 << 20) == [(before, after, [b"a", b" and", b"b"], [0.5, 0.5, 0.5])]


@pytest.mark.parametrize("shapes", [[CHUNK], [CHUNK, THOUGHT]], ids=["one kind of chunk", "two in turn"])
def test_the_chunks_of_a_stream_take_a_fraction_of_their_size(shapes: list[bytes]) -> None:
    kept = CompactEntries()
    tracemalloc.start()
    try:
        for number in range(2000):
            kept.extend([Entry(shapes[number % len(shapes)] % (b"word%d" % number), number / 7)])
        cost, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cost < 2000 * len(CHUNK) / 2
