"""The chunks of other clients' streams: which belong together, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from quart_openai_sse.errors import UpstreamFailed
from quart_openai_sse.producers.foreign import ForeignStreams

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
TWICE = {"prompt_tokens": 10, "completion_tokens": 14, "total_tokens": 24}


def piece(
    content: str | None = None, finish: str | None = None, *, ident: Any = "a", role: bool = False, **members: Any
) -> dict[str, Any]:
    delta = {**({"role": "assistant"} if role else {}), **({} if content is None else {"content": content})}
    choice = {"index": members.pop("index", 0), "delta": delta, "finish_reason": finish}
    return {"id": ident, "object": "chat.completion.chunk", "choices": [choice], **members}


def whole(content: str, *, ident: Any = "a") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"id": ident, "object": "chat.completion", "choices": [choice]}


def usage(ident: Any = "a") -> dict[str, Any]:
    return {"id": ident, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}


def stream(*idents: Any, cut: bool = False, roles: bool = False) -> list[dict[str, Any]]:
    """A stream of four chunks, with the ids of *idents*, the last of them for the rest."""
    ids = [*idents, *[idents[-1]] * 4]
    words = [piece("", ident=ids[0], role=True), piece("x", ident=ids[1], role=roles)]
    words.append(piece("y", ident=ids[2], role=roles))
    return words if cut else [*words, piece(None, "stop", ident=ids[3]), usage(ids[4])]


def follow(chunks: Iterable[Mapping[str, Any]], *, n: int = 1) -> tuple[str, bool, Any]:
    """The text that the chunks have as deltas, whether one of their streams was cut, and their usage."""
    streams, text = ForeignStreams(n=n), ""
    for chunk in chunks:
        for choice in streams.take(chunk)["choices"]:
            assert "message" not in choice
            text += choice["delta"].get("content") or ""
    return text, streams.cut, streams.usage


IDS: dict[str, list[Any]] = {
    "one id": ["a"],
    "empty": [""],
    "null": [None],
    "new in each chunk": ["1", "2", "3", "4", "5"],
    "the first one empty": ["", "a"],
    "changing once": ["a", "a", "b"],
    "missing from the usage": ["a", "a", "a", "a", None],
}


@pytest.mark.parametrize("roles", [False, True], ids=["a role at the beginning", "a role in every chunk"])
@pytest.mark.parametrize("idents", IDS.values(), ids=IDS)
def test_no_id_makes_a_whole_stream_look_cut_or_a_cut_one_whole(idents: list[Any], roles: bool) -> None:
    assert follow(stream(*idents, roles=roles)) == ("xy", False, USAGE)
    assert follow(stream(*idents, cut=True, roles=roles)) == ("xy", True, None)


@pytest.mark.parametrize("idents", IDS.values(), ids=IDS)
@pytest.mark.parametrize("second", IDS.values(), ids=IDS)
def test_two_streams_are_two_whatever_their_ids(idents: list[Any], second: list[Any]) -> None:
    others = [ident and f"other-{ident}" for ident in second]
    for ids in (second, others):
        assert follow([*stream(*idents), *stream(*ids)]) == ("xyxy", False, TWICE)
        assert follow([*stream(*idents), *stream(*ids, cut=True)])[:2] == ("xyxy", True)
    assert follow([*stream(*idents, cut=True), *stream(*others)])[:2] == ("xyxy", True)


@pytest.mark.parametrize("ident", ["a", "", None])
def test_one_id_for_all_streams_does_not_hide_that_the_first_was_cut(ident: Any) -> None:
    assert follow([*stream(ident, cut=True), *stream(ident)])[:2] == ("xyxy", True)


def test_a_stream_cut_after_its_first_chunk_is_noticed_in_the_next_one() -> None:
    first = [piece("x", ident="", role=True)]
    again = [piece("x", ident="", role=True), piece("y", ident=""), piece(None, "stop", ident="")]
    assert follow([*first, *again])[1]
    assert not follow([*again])[1]


def test_two_streams_at_the_same_time_are_told_apart_by_their_ids() -> None:
    both = [each for pair in zip(stream("a"), stream("b"), strict=True) for each in pair]
    assert follow(both) == ("xxyy", False, TWICE)
    assert follow([each for each in both if each["id"] == "a" or (each["choices"] and each["choices"][0]["delta"])])[1]


def choices(*parts: tuple[int, Any, Any]) -> dict[str, Any]:
    listed = [{"index": index, "delta": delta, "finish_reason": finish} for index, delta, finish in parts]
    return {"id": "a", "object": "chat.completion.chunk", "choices": listed}


ROLE = {"role": "assistant", "content": ""}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}
WHOLE: dict[str, tuple[list[Any], int]] = {
    "two choices": (
        [
            *[choices((index, ROLE, None)) for index in (0, 1)],
            *[choices((index, {"content": text}, None)) for text in "ab" for index in (0, 1)],
            *[choices((index, {}, "stop")) for index in (0, 1)],
        ],
        2,
    ),
    "two choices, one after the other": (
        [
            choices((0, ROLE, None)),
            choices((0, {"content": "a"}, None)),
            choices((1, ROLE, None)),
            choices((1, {"content": "b"}, None)),
            choices((0, {"content": "a"}, None)),
            choices((0, {}, "stop"), (1, {}, "stop")),
        ],
        2,
    ),
    "two choices in a chunk": (
        [
            choices((0, {"role": "assistant", "content": "a"}, None), (1, {"role": "assistant", "content": "b"}, None)),
            choices((0, {"content": "c"}, None), (1, {"content": "d"}, None)),
            choices((0, {}, "stop"), (1, {}, "stop")),
        ],
        2,
    ),
    "a role with the tool call": (
        [
            choices((0, {"role": "assistant", "content": "I'll "}, None)),
            choices((0, {"content": "help."}, None)),
            choices((0, CALLED, None)),
            choices((0, {"role": "assistant", "tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, None)),
            choices((0, {}, "tool_calls")),
        ],
        1,
    ),
    "a role with the first text behind reasoning": (
        [
            choices((0, {"role": "assistant", "reasoning": "a"}, None)),
            choices((0, {"reasoning": "b"}, None)),
            choices((0, {"role": "assistant", "content": "c"}, None)),
            choices((0, {"content": "d"}, None)),
            choices((0, {}, "stop")),
        ],
        1,
    ),
    "a role with the finish": (
        [choices((0, ROLE, None)), choices((0, {"content": "a"}, None)), choices((0, ROLE, "stop"))],
        1,
    ),
}


@pytest.mark.parametrize(("chunks", "n"), WHOLE.values(), ids=WHOLE)
def test_a_role_in_the_middle_does_not_make_a_stream_two(chunks: list[Any], n: int) -> None:
    assert follow(chunks, n=n)[1] is False
    assert follow(chunks[:-1], n=n)[1] is True


def test_a_stream_that_was_cut_in_its_reasoning_is_noticed_if_the_next_one_has_another_id() -> None:
    thought = [{**piece(ident="a"), "choices": [{"index": 0, "delta": {"reasoning": "x"}}]}] * 2
    assert follow([*thought, *stream("b")])[1] is True


def test_two_choices_of_a_chunk_are_one_where_one_was_asked_for() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"index": 0, "delta": {"role": "assistant", "content": "Look."}}]
    parts.append({"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"})
    [taken] = ForeignStreams(n=1).take({"id": "a", "choices": parts})["choices"]
    assert taken["delta"] == {"role": "assistant", "content": "Look.", "tool_calls": [call]}
    assert (taken["index"], taken["finish_reason"]) == (0, "tool_calls")


def test_text_of_the_older_api_comes_in_pieces() -> None:
    pieces = [{"id": "a", "choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in "xy"]
    end = {"id": "a", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    assert follow([*pieces, end])[:2] == ("xy", False)
    assert follow(pieces)[:2] == ("xy", True)


def test_tool_calls_are_numbered() -> None:
    streams = ForeignStreams(n=1)
    calls = [{"index": 0, "id": "", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    numbers = []
    for call in calls:
        [choice] = streams.take({"id": "a", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})["choices"]
        numbers += [each["index"] for each in choice["delta"]["tool_calls"]]
    assert numbers == [0, 1]


MESSAGES: dict[str, tuple[list[Any], str]] = {
    "repeats the deltas": ([piece("x"), piece("y"), whole("xy")], "xy"),
    "repeats them, without ids": ([piece("x", ident=None), piece("y", ident=None), whole("xy", ident=None)], "xy"),
    "repeats them behind the finish": ([piece("x"), piece(None, "stop"), whole("x")], "x"),
    "alone": ([whole("x")], "x"),
    "two": ([whole("x", ident="a"), whole("y", ident="b")], "xy"),
    "two without ids": ([whole("x", ident=""), whole("y", ident="")], "xy"),
    "behind another stream": ([*stream("a"), whole("z", ident="b")], "xyz"),
}


@pytest.mark.parametrize(("chunks", "text"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_counts_unless_it_repeats_the_deltas(chunks: list[Any], text: str) -> None:
    assert follow(chunks)[:2] == (text, False)


def test_a_whole_answer_behind_a_cut_stream_does_not_make_it_whole() -> None:
    assert follow([*stream("a", cut=True), whole("z", ident="b")])[:2] == ("xyz", True)


def test_a_chunk_of_the_models_own_ends_what_it_has_passed_on() -> None:
    own = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    assert follow([*stream("a", cut=True), own])[1] is False
    assert follow([{"choices": [{"index": 0, "delta": {"content": "x"}}]}])[1] is False


def test_an_index_that_counts_chunks_is_one_choice() -> None:
    chunks = [piece("x", index=0), piece("y", index=1), piece(None, "stop", index=2)]
    assert follow(chunks)[1] is False
    assert follow(chunks, n=2)[1] is True


@pytest.mark.parametrize("reason", ["error", "abort", "ERROR", "network_error"])
def test_an_interruption_is_no_finish(reason: str) -> None:
    with pytest.raises(UpstreamFailed, match=reason):
        follow([piece("x"), piece(None, reason)])


def test_an_error_is_raised_and_its_usage_counted() -> None:
    streams = ForeignStreams(n=1)
    with pytest.raises(UpstreamFailed, match="gone"):
        streams.take({"id": "a", "error": {"message": "gone"}, "choices": [], "usage": USAGE})
    assert streams.usage == USAGE
    for odd in ([{"delta": [1]}], [None], "x", 5):
        with pytest.raises(UpstreamFailed, match="gone"):
            streams.take({"id": "a", "error": {"message": "gone"}, "choices": odd})
    with pytest.raises(UpstreamFailed, match="lost"):
        streams.take({"id": "a", "choices": [{"index": 0, "delta": {}, "error": {"message": "lost"}}]})
