"""One Chat Completions stream, with the oddities of real servers and of possible ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from json import dumps
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from quart_openai_sse.errors import (
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamTruncated,
)
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completeness import TRANSITIONS, Completion, Signal, State
from quart_openai_sse.protocol.upstream_errors import reported_error
from quart_openai_sse.protocol.usage import add_usage

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DONE = "[DONE]"
EOF = "the body's end"
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

Piece = Mapping[str, Any] | str


def choice(delta: Any = None, finish_reason: Any = None, *, index: Any = 0, **members: Any) -> dict[str, Any]:
    return {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish_reason, **members}


def chunk(*choices: Any, **members: Any) -> dict[str, Any]:
    return {**HEAD, "choices": list(choices), **members}


def text(content: str, *, index: int = 0) -> dict[str, Any]:
    return chunk(choice({"content": content}, index=index))


ROLE = chunk(choice({"role": "assistant", "content": ""}))
FINISH = chunk(choice({}, "stop"))
USAGE_CHUNK = chunk(usage=USAGE)


class Followed(Completion):
    """A stream as a relay follows it, with the message it adds up to."""

    def __init__(self, *, n: int = 1, limit: int = 1 << 26) -> None:
        super().__init__(n=n)
        self.assembly = Assembly(n=n, limit=limit)
        self.message = self.assembly.message

    def feed(self, data: bytes) -> Signal:
        signal = super().feed(data)
        if signal is not Signal.DONE:
            self.assembly.add(data, whole=self.by_message)
        return signal


def follow(pieces: Iterable[Piece], *, n: int = 1, limit: int = 1 << 26) -> Followed:
    completion = Followed(n=n, limit=limit)
    for piece in pieces:
        if piece == EOF:
            completion.end()
        else:
            completion.feed(piece.encode() if isinstance(piece, str) else json.encode(piece))
    return completion


def message(completion: Followed, index: int = 0) -> dict[str, Any]:
    whole = completion.message()
    assert whole is not None
    found: dict[str, Any] = next(each["message"] for each in whole["choices"] if each["index"] == index)
    return found


# What each stream means ---------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A stream, and what is known when it has been fed."""

    pieces: list[Piece]
    state: State
    finish_reasons: Mapping[int, str] = {}
    contents: list[str | None] = []
    usage: Mapping[str, Any] | None = None
    n: int = 1


STOP = {0: "stop"}

STREAMS = {
    "nothing yet": Case([], State.PREAMBLE),
    "a role is no output": Case([ROLE], State.PREAMBLE, contents=[""]),
    "nor is null content": Case(
        [chunk(choice({"role": "assistant", "content": None}))], State.PREAMBLE, contents=[None]
    ),
    "nor are empty members": Case(
        [chunk(choice({"content": "", "tool_calls": [], "refusal": None, "function_call": {}}))],
        State.PREAMBLE,
        contents=[""],
    ),
    "nor is usage": Case([USAGE_CHUNK], State.PREAMBLE, usage=USAGE),
    "nor are empty choices": Case([chunk(), chunk()], State.PREAMBLE),
    "content is output": Case([ROLE, text("Hi")], State.STREAMING, contents=["Hi"]),
    "the first chunk may have content": Case([text("Hi")], State.STREAMING, contents=["Hi"]),
    "a finish alone is output": Case([FINISH], State.FINISHED, STOP, [None]),
    "finished": Case([ROLE, text("Hi"), FINISH], State.FINISHED, STOP, ["Hi"]),
    "complete": Case([ROLE, text("Hi"), FINISH, DONE], State.DONE, STOP, ["Hi"]),
    "complete with usage": Case([ROLE, text("Hi"), FINISH, USAGE_CHUNK, DONE], State.DONE, STOP, ["Hi"], USAGE),
    "[DONE] with spaces around": Case([text("Hi"), FINISH, " [DONE]\r"], State.DONE, STOP, ["Hi"]),
    "EOF after finish_reason": Case([text("Hi"), FINISH, EOF], State.DONE, STOP, ["Hi"]),
    "EOF after [DONE]": Case([text("Hi"), FINISH, DONE, EOF], State.DONE, STOP, ["Hi"]),
    "empty choices anywhere": Case([chunk(), text("Hi"), chunk(), FINISH, chunk(), DONE], State.DONE, STOP, ["Hi"]),
    "choices null or left out": Case(
        [{**HEAD, "choices": None}, HEAD, text("Hi"), FINISH, {**HEAD, "choices": None}, DONE],
        State.DONE,
        STOP,
        ["Hi"],
    ),
    "Azure's first chunk": Case(
        [
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"a": 1}]},
            text("Hi"),
            FINISH,
            DONE,
        ],
        State.DONE,
        STOP,
        ["Hi"],
    ),
    "Azure's filter chunks have no delta": Case(
        [
            text("Hi"),
            FINISH,
            chunk({"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {}}),
            DONE,
        ],
        State.DONE,
        STOP,
        ["Hi"],
    ),
    "usage on every chunk": Case(
        [
            chunk(choice({"content": "H"}), usage={**USAGE, "completion_tokens": 1}),
            chunk(choice({"content": "i"}), usage={**USAGE, "completion_tokens": 2}),
            FINISH,
            DONE,
        ],
        State.DONE,
        STOP,
        ["Hi"],
        USAGE,
    ),
    "usage null on every other chunk": Case(
        [chunk(choice({"content": "Hi"}), usage=None), chunk(choice({}, "stop"), usage=None), USAGE_CHUNK, DONE],
        State.DONE,
        STOP,
        ["Hi"],
        USAGE,
    ),
    "usage before null": Case(
        [chunk(choice({"content": "Hi"}), usage=USAGE), chunk(choice({}, "stop"), usage=None), DONE],
        State.DONE,
        STOP,
        ["Hi"],
        USAGE,
    ),
    "usage on the finish chunk": Case(
        [text("Hi"), chunk(choice({}, "stop"), usage=USAGE), DONE], State.DONE, STOP, ["Hi"], USAGE
    ),
    "the last text in the finish chunk": Case(
        [text("H"), chunk(choice({"content": "i"}, "length")), DONE], State.DONE, {0: "length"}, ["Hi"]
    ),
    'finish_reason ""': Case(
        [chunk(choice({"content": "Hi"}, "")), chunk(choice({}, "stop")), DONE], State.DONE, STOP, ["Hi"]
    ),
    "finish_reason twice": Case([text("Hi"), FINISH, FINISH, DONE], State.DONE, STOP, ["Hi"]),
    "null members left out": Case([chunk({"index": 0, "delta": {"content": "Hi"}})], State.STREAMING, contents=["Hi"]),
    "index left out": Case([{"choices": [{"delta": {"content": "Hi"}}]}], State.STREAMING, contents=["Hi"]),
    "text after the finish": Case([text("H"), FINISH, text("i"), DONE], State.DONE, STOP, ["Hi"]),
    "an empty delta after the finish": Case([text("Hi"), FINISH, ROLE, DONE], State.DONE, STOP, ["Hi"]),
    "n=2 interleaved": Case(
        [
            text("a"),
            text("x", index=1),
            text("b"),
            chunk(choice({}, "stop")),
            text("y", index=1),
            chunk(choice({}, "length", index=1)),
            DONE,
        ],
        State.DONE,
        {0: "stop", 1: "length"},
        ["ab", "xy"],
        n=2,
    ),
    "n=2 interleaved, one open": Case([text("a"), text("x", index=1), FINISH], State.STREAMING, STOP, ["a", "x"], n=2),
    "n=2 one after the other": Case(
        [text("a"), FINISH, text("x", index=1), chunk(choice({}, "stop", index=1)), EOF],
        State.DONE,
        {0: "stop", 1: "stop"},
        ["a", "x"],
        n=2,
    ),
    "n=2 one after the other, the second open": Case(
        [text("a"), FINISH, text("x", index=1)], State.STREAMING, STOP, ["a", "x"], n=2
    ),
    "n=2 in one chunk": Case(
        [chunk(choice({"content": "a"}, "stop"), choice({"content": "x"}, "stop", index=1)), EOF],
        State.DONE,
        {0: "stop", 1: "stop"},
        ["a", "x"],
        n=2,
    ),
    "n=2 in one chunk, one open": Case(
        [chunk(choice({"content": "a"}, "stop"), choice({"content": "x"}, index=1))],
        State.STREAMING,
        STOP,
        ["a", "x"],
        n=2,
    ),
    "n=2 and the server gives one, with [DONE]": Case([text("a"), FINISH, DONE], State.DONE, STOP, ["a"], n=2),
}


@pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
def test_a_stream_means_this(case: Case) -> None:
    completion = follow(case.pieces, n=case.n)
    assert completion.state is case.state
    assert completion.has_output is (case.state is not State.PREAMBLE)
    assert completion.done is (case.state is State.DONE)
    assert completion.finish_reasons == case.finish_reasons
    assert completion.usage == case.usage
    whole = completion.message()
    assert whole is not None
    assert [each["message"]["content"] for each in whole["choices"]] == case.contents
    assert [each["finish_reason"] for each in whole["choices"]] == [
        case.finish_reasons.get(each["index"]) for each in whole["choices"]
    ]


TRUNCATED: dict[str, tuple[list[Piece], int]] = {
    "EOF at once": ([EOF], 1),
    "[DONE] at once": ([DONE], 1),
    "EOF in the preamble": ([ROLE, EOF], 1),
    "[DONE] in the preamble": ([ROLE, USAGE_CHUNK, DONE], 1),
    "EOF in the middle": ([ROLE, text("Hi"), EOF], 1),
    "[DONE] in the middle": ([ROLE, text("Hi"), DONE], 1),
    'EOF after finish_reason ""': ([text("Hi"), chunk(choice({}, "")), EOF], 1),
    "EOF after usage without finish_reason": ([text("Hi"), USAGE_CHUNK, EOF], 1),
    "EOF with one of two open": ([text("a"), text("x", index=1), FINISH, EOF], 2),
    "[DONE] with one of two open": ([text("a"), text("x", index=1), FINISH, DONE], 2),
    "EOF before the second began": ([text("a"), FINISH, EOF], 2),
    "EOF after the second's role": ([text("a"), FINISH, chunk(choice({"role": "assistant"}, index=1)), EOF], 2),
    "EOF in the second": ([text("a"), FINISH, text("x", index=1), EOF], 2),
    "[DONE] in the second": ([text("a"), FINISH, text("x", index=1), DONE], 2),
}


@pytest.mark.parametrize(("pieces", "n"), TRUNCATED.values(), ids=TRUNCATED)
def test_a_stream_that_was_cut_never_looks_complete(pieces: list[Piece], n: int) -> None:
    before = follow(pieces[:-1], n=n)
    assert not before.done
    with pytest.raises(UpstreamTruncated):
        follow(pieces, n=n)


FAILED: dict[str, tuple[list[Piece], str]] = {
    "error": ([text("Hi"), chunk(choice({}, "error")), DONE], "finish_reason 'error'"),
    "abort": ([text("Hi"), chunk(choice({}, "abort")), EOF], "finish_reason 'abort'"),
    "ERROR": ([text("Hi"), chunk(choice({}, "ERROR")), DONE], "finish_reason 'ERROR'"),
    "no resources": ([chunk(choice({}, "insufficient_system_resource"))], "insufficient_system_resource"),
    "an error in the choice": ([text("Hi"), chunk(choice({}, "error", error={"message": "Gone."}))], "Gone."),
    "an error in a choice that stops": ([chunk(choice({"content": "x"}, "stop", error="Gone."))], "Gone."),
}


@pytest.mark.parametrize(("pieces", "message"), FAILED.values(), ids=FAILED)
def test_an_interruption_is_no_finish(pieces: list[Piece], message: str) -> None:
    with pytest.raises(UpstreamFailed, match=message):
        follow(pieces)


def test_an_error_has_its_usage() -> None:
    completion = follow([text("Hi")])
    with pytest.raises(UpstreamFailed):
        completion.feed(json.encode(chunk(error={"message": "Gone."}, usage=USAGE)))
    assert completion.usage == USAGE


ENDS: dict[str, tuple[list[Piece], bool]] = {
    "a reason": ([text("Hi"), FINISH], True),
    "a reason and then text": ([text("Hi"), FINISH, text("x")], True),
    "an empty reason": ([chunk(choice({"content": "Hi"}, ""))], True),
    "an empty reason in the middle": ([text("Hi"), chunk(choice({"content": "x"}, "")), text("y")], True),
    "an empty reason and then text": ([chunk(choice({"content": "Hi"}, "")), text("x")], True),
    "null as text": ([chunk(choice({"content": "Hi"}, "null"))], False),
    "no reason": ([text("Hi"), USAGE_CHUNK], False),
    "nothing": ([ROLE], False),
}


@pytest.mark.parametrize(("pieces", "ends"), ENDS.values(), ids=ENDS)
def test_done_is_an_end_after_a_reason(pieces: list[Piece], ends: bool) -> None:
    if ends:
        assert follow([*pieces, DONE]).done
    else:
        with pytest.raises(UpstreamTruncated):
            follow([*pieces, DONE])


def test_done_is_an_end_without_a_reason_where_none_is_required() -> None:
    completion = follow([text("Hi")])
    completion.require_finish_reason = False
    assert completion.feed(b"[DONE]") is Signal.DONE
    for pieces in ([], [text("Hi")]):
        completion = follow(pieces)
        completion.require_finish_reason = False
        with pytest.raises(UpstreamTruncated):
            completion.end()


@pytest.mark.parametrize("first", [text("Hi"), chunk(choice({}, "stop", message={"content": "Hi"}))])
def test_a_message_is_output_where_no_delta_came(first: Piece) -> None:
    completion = follow([first])
    assert completion.by_message is (first != text("Hi"))
    completion.feed(json.encode({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}))
    assert not completion.by_message
    assert message(completion)["content"] == "Hi"
    completion.end()


def test_messages_that_come_in_pieces_are_read_one_after_the_other() -> None:
    pieces = [
        chunk({"index": 0, "message": {"content": content}}) for content in ("River ", "stones ", "River stones ")
    ]
    completion = follow(pieces)
    assert message(completion)["content"] == "River stones "  # the last one repeats the others
    completion.feed(json.encode(FINISH))
    completion.end()


def test_a_message_that_grows_with_each_chunk_is_not_read_twice() -> None:
    completion = follow([chunk({"index": 0, "message": {"content": "River "}})])
    with pytest.raises(UpstreamGarbled):
        completion.feed(json.encode(chunk({"index": 0, "message": {"content": "River stones"}})))


def test_blocks_of_reasoning_stay_apart() -> None:
    encrypted = [{"type": "reasoning.encrypted", "index": 0, "id": each, "data": f"{each}=="} for each in "ab"]
    signed = [
        {"type": "reasoning.text", "index": 1, **members}
        for members in ({"text": "One"}, {"signature": "S"}, {"text": "Two"}, {"signature": "T"})
    ]
    completion = follow(chunk(choice({"reasoning_details": [each]})) for each in (*encrypted, *signed))
    assert message(completion)["reasoning_details"] == [
        *encrypted,
        {"type": "reasoning.text", "index": 1, "text": "One", "signature": "S"},
        {"type": "reasoning.text", "index": 1, "text": "Two", "signature": "T"},
    ]


def test_details_behind_the_finish_do_not_begin_the_answer_again() -> None:
    for delta in ({"content": "", "channel": "final"}, {"content": [{"type": "reference"}]}, {"annotations": [1]}):
        completion = follow([text("Hi"), FINISH, chunk(choice(delta))])
        completion.end()
    with pytest.raises(UpstreamTruncated):
        follow([text("Hi"), FINISH, text("more"), EOF])


@pytest.mark.parametrize("where", [{"usage": USAGE}, {"x_groq": {"usage": USAGE}}])
def test_usage_beside_text_counts(where: dict[str, Any]) -> None:
    assert follow([text("Hi"), {**text("x"), **where}]).usage == USAGE
    assert follow([text("Hi"), chunk(choice({"content": "x"}, usage=USAGE))]).usage == USAGE


def test_a_refusal_that_is_said_twice_is_stored_once() -> None:
    completion = follow([chunk(choice({"content": [{"type": "refusal", "refusal": "No."}], "refusal": "No."}))])
    assert message(completion)["refusal"] == "No."


def test_the_text_of_the_older_api_comes_in_pieces() -> None:
    completion = Followed()
    for piece in ("a", "b", ""):
        completion.feed(json.encode({"choices": [{"index": 0, "text": piece, "finish_reason": None}]}))
        assert completion.by_message is bool(piece)
    assert message(completion)["content"] == "ab"


@pytest.mark.parametrize(
    ("piece", "signal"),
    [
        (chunk(choice({}), usage=USAGE), Signal.USAGE),
        (chunk(choice({"content": "", "role": None}), usage=USAGE), Signal.USAGE),
        (chunk(x_groq={"usage": USAGE}), Signal.USAGE),
        (chunk(choice({"role": "assistant"}), usage=USAGE), Signal.NOTHING),
        (chunk(choice({"content": "x"}), usage=USAGE), Signal.OUTPUT),
        (chunk(choice({}, "stop"), usage=USAGE), Signal.FINISH),
        (chunk(usage=USAGE, citations=["a"]), Signal.NOTHING),
        (chunk(usage={**USAGE, "images": 0}), Signal.USAGE),
    ],
)
def test_a_chunk_that_says_nothing_but_usage_is_told_however_its_choices_look(piece: Any, signal: Signal) -> None:
    completion = Completion()
    assert completion.feed(json.encode(piece)) is signal
    assert (completion.usage or {}).items() >= USAGE.items()


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("signal", Signal)
def test_only_a_finished_stream_can_become_done(state: State, signal: Signal) -> None:
    after = TRANSITIONS[state].get(signal)
    ends = {State.FINISHED: {Signal.DONE, Signal.EOF}, State.STREAMING: {Signal.DONE}}.get(state, set())
    assert (after is State.DONE) is (signal in ends)
    assert after is not State.PREAMBLE or state is State.PREAMBLE


def test_nothing_comes_after_done() -> None:
    completion = follow([text("Hi"), FINISH, DONE])
    for piece in (b"[DONE]", json.encode(text("more")), json.encode(text("and more")), json.encode(USAGE_CHUNK)):
        with pytest.raises(OpenAISSEError):
            completion.feed(piece)
    assert (completion.done, completion.usage) == (True, None)


MEANINGS: list[tuple[Any, Signal]] = [
    (ROLE, Signal.NOTHING),
    (chunk(), Signal.NOTHING),
    (chunk(choice({"content": "Hi", "x": [1]}, y=None), z={"a": 1.5}), Signal.OUTPUT),
    (chunk(choice({"content": ["odd"]}, 5, index=None)), Signal.OUTPUT),
    (chunk(choice({}, "stop"), usage=USAGE), Signal.FINISH),
    (USAGE_CHUNK, Signal.USAGE),
    (chunk() | {"choices": None, "usage": USAGE}, Signal.USAGE),
    (chunk(usage={}), Signal.NOTHING),
]


def test_feed_says_what_each_chunk_means() -> None:
    completion = Completion()
    assert [completion.feed(json.encode(piece)) for piece, _ in MEANINGS] == [meaning for _, meaning in MEANINGS]
    assert completion.feed(b" [DONE]") is Signal.DONE


ANOTHER_USAGE = {**USAGE, "completion_tokens": 5}
CONTINUED: list[tuple[Any, Signal]] = [
    (chunk(choice({"content": "a"})), Signal.OUTPUT),
    (chunk(choice({"reasoning_content": "b"})), Signal.OUTPUT),
    (chunk(choice({"content": "", "tool_calls": [{"index": 0}]})), Signal.OUTPUT),
    (chunk(choice({"content": "c"}), usage=ANOTHER_USAGE), Signal.OUTPUT),
    (ROLE, Signal.NOTHING),
    (chunk(choice({"content": "", "refusal": None})), Signal.NOTHING),
    (chunk(choice()), Signal.NOTHING),
    (chunk(choice({"content": "x"}, index=1)), Signal.OUTPUT),
    (chunk(choice({"content": "d"}, "stop")), Signal.OUTPUT),
    (chunk(choice({"content": "after the finish"})), Signal.OUTPUT),
    (chunk(choice({"content": "y"}, "stop", index=1)), Signal.OUTPUT),
    (chunk(choice({}, "stop")), Signal.FINISH),
]


def test_a_choice_goes_on_with_any_member_until_its_finish() -> None:
    completion = Completion(n=2)
    assert [completion.feed(json.encode(piece)) for piece, _ in CONTINUED] == [meaning for _, meaning in CONTINUED]
    assert completion.usage == ANOTHER_USAGE
    assert completion.finish_reasons == {0: "stop", 1: "stop"}


def test_a_chunk_of_many_lines_is_a_chunk() -> None:
    completion = Followed()
    completion.feed(dumps(text("Hi"), indent=2).encode())
    assert message(completion)["content"] == "Hi"


GARBLED = {
    "text": b"Internal Server Error",
    "HTML": b"<html>",
    "half a chunk": b'{"choices": [{"del',
    "invalid UTF-8": b'{"id": "\xff"}',
    "NaN": b'{"created": NaN}',
    "NaN beside a lone surrogate": b'{"id": "\\ud800", "created": NaN}',
    "a number no float can hold": b'{"id": "\\u0041", "created": 1e999}',
    "UTF-16": '{"id": "\u755c"}'.encode("utf-16-le"),
    "a list": b"[]",
    "a string": b'"[DONE]"',
    "null": b"null",
    "too deep": b'{"a":' * 100_000,
    "too deep beside a lone surrogate": b'{"b": "\\ud800", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", GARBLED.values(), ids=GARBLED)
def test_what_is_no_json_object_is_garbled(data: bytes) -> None:
    with pytest.raises(UpstreamGarbled):
        Followed().feed(data)


@pytest.mark.parametrize("member", [b"id", b"odd"])
def test_what_is_not_utf_8_is_garbled_also_where_nobody_looks_at_it(member: bytes) -> None:
    with pytest.raises(UpstreamGarbled):
        Completion().feed(b'{"%b":"\xff","choices":[{"index":0,"delta":{"content":"Hi"}}]}' % member)


def test_half_an_emoji_is_no_harm() -> None:
    completion = Followed()
    for half in (b"\\ud83d", b"\\ude00"):
        completion.feed(b'{"choices": [{"index": 0, "delta": {"content": "%s"}}]}' % half)
    assert message(completion)["content"] == "\U0001f600"
    assert json.decode(json.encode(completion.message()))["choices"][0]["message"]["content"] == "\U0001f600"


# Errors within the stream -------------------------------------------------------------------------------------------

Expected = tuple[str, int, str, str | None, str]
"""Message, status, type, param, code."""

NO_MESSAGE = "The upstream reported an error."

ERRORS: dict[str, tuple[Any, Expected]] = {
    "OpenAI's": (
        {"error": {"message": "Too long", "type": "invalid_request_error", "param": "messages", "code": "too_long"}},
        ("Too long", 502, "invalid_request_error", "messages", "too_long"),
    ),
    "a code that is a status": (
        {"error": {"message": "Slow down", "code": 429}},
        ("Slow down", 429, "rate_limit_exceeded", None, "429"),
    ),
    "a code that is a 5xx": ({"error": {"message": "m", "code": 503}}, ("m", 503, "upstream_error", None, "503")),
    "a code that is no status": ({"error": {"message": "m", "code": 7}}, ("m", 502, "upstream_error", None, "7")),
    "a code that is a list": (
        {"error": {"message": "m", "code": []}},
        ("m", 502, "upstream_error", None, "upstream_failed"),
    ),
    "nulls": (
        {"error": {"message": "m", "type": None, "param": None, "code": None}},
        ("m", 502, "upstream_error", None, "upstream_failed"),
    ),
    "a bare string": ({"error": "Out of memory"}, ("Out of memory", 502, "upstream_error", None, "upstream_failed")),
    "true": ({"error": True}, (NO_MESSAGE, 502, "upstream_error", None, "upstream_failed")),
    "a list": ({"error": [1]}, (NO_MESSAGE, 502, "upstream_error", None, "upstream_failed")),
    "a message that is a number": (
        {"error": {"message": 5}},
        (NO_MESSAGE, 502, "upstream_error", None, "upstream_failed"),
    ),
    "an empty message": ({"error": {"message": ""}}, (NO_MESSAGE, 502, "upstream_error", None, "upstream_failed")),
    "beside choices": (
        {**text("Hi"), "error": {"message": "m"}},
        ("m", 502, "upstream_error", None, "upstream_failed"),
    ),
    "detail": ({"detail": "Not Found"}, ("Not Found", 502, "upstream_error", None, "upstream_failed")),
    "detail beside an empty error": (
        {"error": "", "detail": "m"},
        ("m", 502, "upstream_error", None, "upstream_failed"),
    ),
    "a list of details": ({"detail": [{"msg": "m"}]}, ("m", 502, "upstream_error", None, "upstream_failed")),
    "vLLM's": (
        {"object": "error", "message": "m", "type": "BadRequestError", "param": None, "code": 400},
        ("m", 400, "BadRequestError", None, "400"),
    ),
}


@pytest.mark.parametrize(("data", "expected"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("before", [[], [ROLE], [text("Hi")], [text("Hi"), FINISH]], ids=["0", "role", "text", "end"])
def test_an_error_object_of_any_shape_fails_the_stream(data: Any, expected: Expected, before: list[Piece]) -> None:
    completion = follow(before)
    with pytest.raises(UpstreamFailed) as raised:
        completion.feed(json.encode(data))
    error = raised.value
    assert (error.message, error.status, error.type, error.param, error.code) == expected
    assert not completion.done
    assert error.body()["error"]["message"] == error.message


@pytest.mark.parametrize(
    "data",
    [
        chunk(error=None),
        {**text("Hi"), "error": None},
        {**text("Hi"), "error": {}},
        {**text("Hi"), "detail": "low"},
        {**HEAD, "usage": USAGE},
    ],
    ids=["null", "null beside choices", "empty", "a detail beside choices", "no choices"],
)
def test_what_is_no_error_is_a_chunk(data: Any) -> None:
    assert reported_error(data) is None
    Followed().feed(json.encode(data))


@pytest.mark.parametrize("code", [401, 403, "invalid_api_key"])
def test_an_error_about_our_key_is_not_the_visitors_and_not_told(code: Any) -> None:
    with pytest.raises(UpstreamCredentials) as raised:
        Followed().feed(json.encode({"error": {"message": "Incorrect API key: sk-1***2", "code": code}}))
    assert raised.value.status == 502
    assert "sk-1" not in str(raised.value.body())


# The message --------------------------------------------------------------------------------------------------------


def call(
    index: Any = None, call_id: Any = None, name: Any = None, arguments: Any = None, **others: Any
) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    members = {"index": index, "id": call_id, "function": function or None, **others}
    return {key: value for key, value in members.items() if value is not None}


def made(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    made = {"id": call_id, "type": "function", "function": {k: v for k, v in function.items() if v is not None}}
    return {key: value for key, value in made.items() if value is not None}


TOOL_CALLS: dict[str, tuple[list[list[Any]], list[dict[str, Any]]]] = {
    "fragments": (
        [[call(0, "a", "f", "", type="function")], [call(0, arguments='{"x"')], [call(0, arguments=": 1}")]],
        [made("a", "f", '{"x": 1}')],
    ),
    "parallel": (
        [
            [call(0, "a", "f", "")],
            [call(0, arguments="1")],
            [call(1, "b", "g", "")],
            [call(1, arguments="2")],
        ],
        [made("a", "f", "1"), made("b", "g", "2")],
    ),
    "parallel and interleaved": (
        [[call(0, "a", "f", "1"), call(1, "b", "g", "2")], [call(1, arguments="3"), call(0, arguments="4")]],
        [made("a", "f", "14"), made("b", "g", "23")],
    ),
    "whole calls in one delta": (
        [[call(0, "a", "f", "1"), call(1, "b", "g", "2")]],
        [made("a", "f", "1"), made("b", "g", "2")],
    ),
    "the id repeated": (
        [[call(0, "a", "f", "1")], [call(0, "a", arguments="2")], [call(0, "a", arguments="3")]],
        [made("a", "f", "123")],
    ),
    "id and name repeated": (
        [[call(0, "a", "f", "1")], [call(0, "a", "f", "2")], [call(1, "b", "f", "3")], [call(1, "b", "f", "4")]],
        [made("a", "f", "12"), made("b", "f", "34")],
    ),
    "the id empty later": (
        [[call(0, "a", "f", "1")], [call(0, "", "", "2")]],
        [made("a", "f", "12")],
    ),
    "the id in a later fragment": (
        [[call(0, name="f", arguments="1")], [call(0, "a", arguments="2")]],
        [made("a", "f", "12")],
    ),
    "index missing": (
        [[call(None, "a", "f", "1")], [call(None, "b", "g", "2")]],
        [made("a", "f", "1"), made("b", "g", "2")],
    ),
    "index missing, in fragments": (
        [[call(None, "a", "f", "1")], [call(arguments="2")], [call(None, "b", "g", "3")], [call(arguments="4")]],
        [made("a", "f", "12"), made("b", "g", "34")],
    ),
    "index missing in the fragments only": (
        [[call(0, "a", "f", "1")], [call(arguments="2")], [call(1, "b", "g", "3")], [call(arguments="4")]],
        [made("a", "f", "12"), made("b", "g", "34")],
    ),
    "index missing, the id going back": (
        [[call(None, "a", "f", "1")], [call(None, "b", "g", "2")], [call(None, "a", arguments="3")]],
        [made("a", "f", "13"), made("b", "g", "2")],
    ),
    "index repeated": (
        [[call(0, "a", "f", "1")], [call(0, "b", "g", "2")], [call(0, arguments="3")]],
        [made("a", "f", "1"), made("b", "g", "23")],
    ),
    "index repeated, in one delta": (
        [[call(0, "a", "f", "1"), call(0, "b", "g", "2")]],
        [made("a", "f", "1"), made("b", "g", "2")],
    ),
    "index repeated, interleaved": (
        [[call(0, "a", "f", "1"), call(0, "b", "g", "2")], [call(0, "a", arguments="3"), call(0, "b", arguments="4")]],
        [made("a", "f", "13"), made("b", "g", "24")],
    ),
    "index missing, the id of one that had it": (
        [[call(0, "a", "f", "1")], [call(1, "b", "g", "2")], [call(None, "a", arguments="3")]],
        [made("a", "f", "13"), made("b", "g", "2")],
    ),
    "one id at two indexes": (
        [[call(0, "a", "f", "1")], [call(1, "a", "g", "2")], [call(0, arguments="3")]],
        [made("a", "f", "13"), made("a", "g", "2")],
    ),
    "no id at all": ([[call(0, name="f", arguments="1")], [call(0, arguments="2")]], [made(None, "f", "12")]),
    "an id that is a number": ([[call(0, 7, "f", "1")], [call(0, 7, None, "2")]], [{**made("", "f", "12"), "id": 7}]),
    "index and id of odd types": ([[call([], {}, "f", "1")]], [{**made(None, "f", "1"), "id": {}}]),
    "index true is no index": (
        [[call(1, "a", "f", "1")], [call(True, "b", "g", "2")], [call(1, arguments="3")]],
        [made("a", "f", "13"), made("b", "g", "2")],
    ),
    "index -1 and huge": (
        [[call(-1, "a", "f", "1")], [call(1 << 80, "b", "g", "2")], [call(-1, arguments="3")]],
        [made("a", "f", "13"), made("b", "g", "2")],
    ),
    "a custom tool": (
        [[call(0, "a", type="custom", custom={"input": "1"})], [call(0, custom={"input": "2"})]],
        [{"id": "a", "type": "custom", "custom": {"input": "12"}}],
    ),
    "type null at first": ([[{**call(0, "a", "f", "1"), "type": None}]], [made("a", "f", "1")]),
    "unknown members": (
        [[call(0, "a", "f", "1", extra_content={"google": {"thought_signature": "x"}})]],
        [{**made("a", "f", "1"), "extra_content": {"google": {"thought_signature": "x"}}}],
    ),
    "a new id in each piece": (
        [[call(0, "a", "f", "")], [call(0, "b", arguments='{"x"')], [call(0, "c", arguments=":1}")]],
        [made("a", "f", '{"x":1}')],
    ),
    "a new id and the name in each piece": (
        [[call(0, "a", "f", "")], [call(0, "b", "f", '{"x"')], [call(0, "c", "f", ":1}")]],
        [made("a", "f", '{"x":1}')],
    ),
    "whole calls without ids": (
        [[call(0, "", "f", "{}"), call(0, "", "g", "{}")], [call(0, None, "g", '{"x":1}')]],
        [made("", "f", "{}"), made("", "g", "{}"), made(None, "g", '{"x":1}')],
    ),
    "whole calls without anything but names": (
        [[call(None, None, "f", "{}")], [call(None, None, "f", "{}")]],
        [made(None, "f", "{}"), made(None, "f", "{}")],
    ),
    "arguments as an object": ([[call(0, "a", "f", {"x": 1})]], [made("a", "f", '{"x":1}')]),
    "a piece of an unknown index": ([[call(0, "a", "f", "1")], [call(3, arguments="2")]], [made("a", "f", "12")]),
    "two calls without arguments in one delta": (
        [[call(0, "", "f", ""), call(0, "", "f", "")]],
        [made("", "f", ""), made("", "f", "")],
    ),
    "an index that is text": (
        [[call("0", "a", "f", "1"), call("1", "b", "g", "2")], [call("0", arguments="3")]],
        [made("a", "f", "13"), made("b", "g", "2")],
    ),
    "two custom tools without an index": (
        [
            [call(None, "a", type="custom", custom={"name": "f", "input": "h"})],
            [call(None, "b", custom={"name": "g", "input": "x"})],
        ],
        [
            {"id": "a", "type": "custom", "custom": {"name": "f", "input": "h"}},
            {"id": "b", "type": "function", "custom": {"name": "g", "input": "x"}},
        ],
    ),
    "equal pieces of an input": (
        [[call(0, "a", type="custom", custom={"name": "f", "input": "ha"})], [call(0, custom={"input": "ha"})]],
        [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "haha"}}],
    ),
    "a repeated whole call": (
        [[call(0, "a", "f", "{}")], [call(0, "a", "f", "")]],
        [made("a", "f", "{}")],
    ),
    "nulls among them": ([[None, call(0, "a", "f", "1"), 5, "x", []]], [made("a", "f", "1")]),
}


@pytest.mark.parametrize(("deltas", "expected"), TOOL_CALLS.values(), ids=TOOL_CALLS)
def test_tool_calls_add_up(deltas: list[list[Any]], expected: list[dict[str, Any]]) -> None:
    completion = follow([ROLE, *(chunk(choice({"tool_calls": calls})) for calls in deltas)])
    assert completion.state is State.STREAMING
    assert message(completion)["tool_calls"] == expected


def test_members_that_openai_does_not_know_add_up_too() -> None:
    deltas = [
        {"role": "assistant", "content": None, "reasoning_content": "Let "},
        {"role": "assistant", "reasoning_content": "me", "reasoning": "a"},
        {"content": "H", "reasoning": "b", "reasoning_details": [{"text": "x"}]},
        {"content": "i", "refusal": "N", "reasoning_details": [{"text": "y"}]},
        {"refusal": "o", "audio": {"id": "audio-1", "data": "AA", "transcript": "h"}},
        {"audio": {"id": "audio-1", "data": "BB", "transcript": "i", "expires_at": 9}, "flag": True, "count": 1},
        {"function_call": {"name": "f", "arguments": "{"}, "count": 2},
        {"function_call": {"arguments": "}"}},
    ]
    assert message(follow(chunk(choice(delta)) for delta in deltas)) == {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "Let me",
        "reasoning": "ab",
        "reasoning_details": [{"text": "xy"}],
        "refusal": "No",
        "audio": {"id": "audio-1", "data": "AABB", "transcript": "hi", "expires_at": 9},
        "flag": True,
        "count": 2,
        "function_call": {"name": "f", "arguments": "{}"},
    }


@pytest.mark.parametrize("member", ["content", "reasoning_content", "reasoning", "refusal", "audio", "made_up"])
def test_any_member_but_the_role_is_output(member: str) -> None:
    assert follow([chunk(choice({member: "x"}))]).has_output
    assert not follow([chunk(choice({member: ""})), chunk(choice({member: None}))]).has_output


def test_the_message_is_a_chat_completion() -> None:
    completion = follow(
        [
            {"id": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"a": 1}]},
            chunk(choice({"role": "assistant", "content": ""}), obfuscation="x", system_fingerprint="fp"),
            {**text("Hi"), "id": "later", "model": "later", "service_tier": "default"},
            FINISH,
            USAGE_CHUNK,
        ]
    )
    assert completion.message() == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "prompt_filter_results": [{"a": 1}],
        "system_fingerprint": "fp",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_asking_for_the_message_early_changes_nothing() -> None:
    completion = Followed()
    for content in "abc":
        completion.feed(json.encode(text(content)))
        completion.message()
    assert message(completion)["content"] == "abc"


def test_a_message_is_assembled_up_to_a_limit_and_the_stream_followed_beyond_it() -> None:
    pieces = [ROLE, text("Hi"), FINISH, USAGE_CHUNK, DONE]
    size = sum(len(json.encode(piece)) for piece in pieces[:-1])
    assert follow(pieces, limit=size + 1).message() is not None
    for limit in (0, 1, size):
        completion = follow(pieces, limit=limit)
        assert completion.message() is None
        assert (completion.done, completion.finish_reasons, completion.usage) == (True, STOP, USAGE)


@settings(deadline=None)
@given(st.lists(st.text(st.characters()), max_size=20), st.integers(0, 3))
def test_however_a_text_is_cut_into_deltas_the_message_is_the_text(contents: list[str], index: int) -> None:
    completion = follow((chunk(choice({"content": content}, index=index)) for content in contents), n=4)
    assert completion.has_output is any(contents)
    if contents:
        assert message(completion, index)["content"] == json.decode(json.encode("".join(contents)))


# As OpenAI's SDK does -----------------------------------------------------------------------------------------------

LOGPROB = {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}

NORMAL: dict[str, list[dict[str, Any]]] = {
    "text": [ROLE, text("Hello"), text(" world"), FINISH, USAGE_CHUNK],
    "no usage": [ROLE, text("Hello"), FINISH],
    "nothing said": [ROLE, FINISH],
    "a refusal": [
        chunk(choice({"role": "assistant", "content": None, "refusal": ""})),
        chunk(choice({"refusal": "I can"})),
        chunk(choice({"refusal": "'t."})),
        FINISH,
    ],
    "a content filter": [ROLE, text("Hi"), chunk(choice({}, "content_filter"))],
    "tool calls in parallel": [
        chunk(choice({"role": "assistant", "content": None})),
        chunk(choice({"tool_calls": [call(0, "a", "f", "", type="function")]})),
        chunk(choice({"tool_calls": [call(0, arguments='{"x":')]})),
        chunk(choice({"tool_calls": [call(0, arguments="1}")]})),
        chunk(choice({"tool_calls": [call(1, "b", "g", "", type="function")]})),
        chunk(choice({"tool_calls": [call(1, arguments="{}")]})),
        chunk(choice({}, "tool_calls")),
        USAGE_CHUNK,
    ],
    "text, then a tool call": [
        ROLE,
        text("Let me see."),
        chunk(choice({"tool_calls": [call(0, "a", "f", "", type="function")]})),
        chunk(choice({"tool_calls": [call(0, arguments="{}")]})),
        chunk(choice({}, "tool_calls")),
    ],
    "a function call": [
        chunk(choice({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}})),
        chunk(choice({"function_call": {"arguments": "{"}})),
        chunk(choice({"function_call": {"arguments": "}"}})),
        chunk(choice({}, "function_call")),
    ],
    "reasoning": [
        chunk(choice({"role": "assistant", "content": None, "reasoning_content": ""})),
        chunk(choice({"reasoning_content": "Let me"})),
        chunk(choice({"reasoning_content": " think"})),
        text("Hi"),
        FINISH,
    ],
    "logprobs": [
        ROLE,
        chunk(choice({"content": "H"}, logprobs={"content": [LOGPROB], "refusal": None})),
        chunk(choice({"content": "i"}, logprobs={"content": [LOGPROB, LOGPROB], "refusal": None})),
        FINISH,
    ],
    "two choices": [
        ROLE,
        chunk(choice({"role": "assistant", "content": ""}, index=1)),
        text("a"),
        text("x", index=1),
        text("b"),
        chunk(choice({}, "stop")),
        text("y", index=1),
        chunk(choice({}, "length", index=1)),
        USAGE_CHUNK,
    ],
}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {member: without_nulls(inner) for member, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("chunks", NORMAL.values(), ids=NORMAL)
def test_the_message_is_the_one_that_openais_sdk_puts_together(chunks: list[dict[str, Any]]) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for each in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(each))
    theirs = without_nulls(state.current_completion_snapshot.model_dump(mode="json"))
    for their_choice in theirs["choices"]:
        for their_call in their_choice["message"].get("tool_calls", ()):
            their_call.pop("index", None)
    ours = without_nulls(follow(chunks, n=2).message())
    assert ours == theirs


# Hostile values -----------------------------------------------------------------------------------------------------

HOSTILE: dict[str, Any] = {
    "choices null": chunk() | {"choices": None},
    "choices a number": chunk() | {"choices": 5},
    "choices an object": chunk() | {"choices": {"index": 0}},
    "choices text": chunk() | {"choices": "abc"},
    "a choice null": chunk(None),
    "a choice a list": chunk([]),
    "index true": chunk(choice({"content": "x"}, index=True)),
    "index -1": chunk(choice({"content": "x"}, index=-1)),
    "index huge": chunk(choice({"content": "x"}, index=10**4000)),
    "index a float": chunk(choice({"content": "x"}, index=1.5)),
    "index text": chunk(choice({"content": "x"}, index="0")),
    "index a list": chunk(choice({"content": "x"}, index=[])),
    "index an object": chunk(choice({"content": "x"}, index={})),
    "delta null": chunk({"index": 0, "delta": None}),
    "delta a list": chunk(choice([1])),
    "delta text": chunk(choice("abc")),
    "content a list": chunk(choice({"content": [{"type": "text", "text": "x"}]})),
    "content a number": chunk(choice({"content": 5})),
    "content an object": chunk(choice({"content": {"tool_calls": [{}]}})),
    "role a list": chunk(choice({"role": []})),
    "tool_calls null": chunk(choice({"tool_calls": None})),
    "tool_calls text": chunk(choice({"tool_calls": "abc"})),
    "tool_calls a number": chunk(choice({"tool_calls": 5})),
    "tool_calls an object": chunk(choice({"tool_calls": {"index": 0}})),
    "tool_calls with null": chunk(choice({"tool_calls": [None, [], 5, "x"]})),
    "a tool call": chunk(choice({"tool_calls": [call(0, "a", "f", "{}")]})),
    "a tool call of odd members": chunk(choice({"tool_calls": [{"index": {}, "id": [], "function": [], "type": 5}]})),
    "a tool call of tool calls": chunk(choice({"tool_calls": [{"tool_calls": [{"tool_calls": [None]}]}]})),
    "function text": chunk(choice({"tool_calls": [{"index": 0, "function": "f"}]})),
    "arguments an object": chunk(choice({"tool_calls": [{"index": 0, "function": {"arguments": {"a": 1}}}]})),
    "finish_reason a number": chunk(choice({}, 5)),
    "finish_reason true": chunk(choice({}, True)),
    "finish_reason an object": chunk(choice({}, {"a": 1})),
    "logprobs a list": chunk(choice({}, logprobs=[1])),
    "logprobs text": chunk(choice({}, logprobs="abc")),
    "logprobs of odd members": chunk(choice({}, logprobs={"content": 5, "refusal": {}, "tool_calls": "x"})),
    "usage a list": chunk(usage=[1]),
    "usage a number": chunk(usage=5),
    "id a list": chunk(id=[1], model={"a": 1}, created="x"),
    "half an emoji": chunk(choice({"content": "\ud83d"})),
    "error a list of nothing": {"error": [None]},
    "detail an object": {"detail": {"message": 5, "code": True}},
}


@pytest.mark.parametrize("odd", HOSTILE.values(), ids=HOSTILE)
def test_an_odd_chunk_raises_nothing_but_an_error_of_ours(odd: Any) -> None:
    # Each follows and is followed by every other: a member may change its type half-way.
    for other in HOSTILE.values():
        completion = Followed()
        for each in (odd, other, odd, text("x"), FINISH):
            _feed(completion, json.encode(each))
        whole = completion.message()
        assert json.encode(whole)
        assert json.encode(completion.assembly.details)
        assert json.encode(completion.assembly.first_message())


def _feed(completion: Followed, data: bytes) -> None:
    with suppress(UpstreamError):
        completion.feed(data)


@pytest.mark.parametrize("finish_reason", [5, True, {"a": 1}, [], "", None])
def test_only_a_string_is_a_finish_reason(finish_reason: Any) -> None:
    with pytest.raises(UpstreamTruncated):
        follow([text("x"), chunk(choice({}, finish_reason)), EOF])


@pytest.mark.parametrize("usage", [[1], 5, "x", True, None])
def test_only_an_object_is_usage(usage: Any) -> None:
    assert follow([chunk(usage=usage)]).usage is None
    assert follow([USAGE_CHUNK, chunk(usage=usage)]).usage == USAGE


def test_true_is_no_index() -> None:
    pieces = [chunk(choice({"content": "x"}, index=True)), text("y", index=1), chunk(choice({}, "stop"))]
    completion = follow(pieces, n=2)
    assert (message(completion, 0)["content"], message(completion, 1)["content"]) == ("x", "y")
    assert completion.finish_reasons == STOP


@pytest.mark.parametrize("depth", [15, 50, 400, 900, 960, 5000])
@pytest.mark.parametrize("member", ["x", "tool_calls"])
def test_depth_raises_nothing_but_an_error_of_ours(depth: int, member: str) -> None:
    opening, closing = ("[{", "}]") if member == "tool_calls" else ("{", "}")
    inner = f'{{"{member}":{opening[:-1]}' * depth + "{}" + f"{closing[1:]}}}" * depth
    completion = Followed()
    for _ in range(2):
        _feed(completion, f'{{"choices":[{{"delta":{inner}}}],"usage":{inner}}}'.encode())
        completion.message()
        add_usage(completion.usage, completion.usage)


def test_tool_calls_do_not_slow_down_with_their_number() -> None:
    # Looked for one by one, these would be compared half a billion times.
    calls = [call(0, f"call-{number}", "f", "") for number in range(30_000)]
    completion = follow([chunk(choice({"tool_calls": calls}))])
    assert len(message(completion)["tool_calls"]) == 30_000


_CHUNK = [
    "choices",
    "delta",
    "index",
    "content",
    "finish_reason",
    "usage",
    "logprobs",
    "refusal",
    "role",
    "object",
    "x",
]
_CALL = ["tool_calls", "id", "type", "function", "name", "arguments"]
_ERROR = ["error", "message", "code", "detail"]
_members = st.sampled_from([*_CHUNK, *_CALL, *_ERROR])
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=3) | st.sampled_from([0, 1, -1, 10**30, "stop", "", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_members, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_chunks = _values | st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "index": st.integers(-1, 2) | _values,
                    "delta": st.dictionaries(_members, _values, max_size=3) | _values,
                    "finish_reason": st.sampled_from(["stop", "", None]) | _values,
                    "logprobs": _values,
                },
            )
            | _values,
            max_size=3,
        )
    },
    optional={"usage": _values, "id": _values, "error": _values},
)


@pytest.mark.parametrize("choices", [True, 5, 0.5, "x", {"x": 1}, None])
def test_usage_beside_choices_that_are_no_list_counts(choices: Any) -> None:
    completion = Completion()
    assert completion.feed(json.encode({"choices": choices, "usage": USAGE})) is Signal.USAGE
    assert completion.usage == USAGE


def test_a_number_beyond_a_float_beside_usage_is_an_error_of_ours() -> None:
    with pytest.raises(UpstreamGarbled):
        Completion().feed(b'{"choices": [], "usage": {"total_tokens": 1}, "x": 1e999}')


@settings(deadline=None, max_examples=300)
@given(st.lists(_chunks, max_size=5), st.integers(1, 3))
def test_no_json_whatsoever_raises_anything_but_an_error_of_ours(values: list[Any], n: int) -> None:
    completion = Followed(n=n)
    for value in values:
        _feed(completion, json.encode(value))
        assert json.encode(completion.message())
    try:
        completion.end()
    except UpstreamTruncated:
        assert not completion.done
    else:
        assert completion.done
        assert len(completion.finish_reasons) >= n


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_whatsoever_raise_anything_but_an_error_of_ours(data: bytes) -> None:
    _feed(Followed(), data)


# Usage --------------------------------------------------------------------------------------------------------------

SUMS: dict[str, tuple[Any, Any, Any]] = {
    "neither known": (None, None, None),
    "one known": (None, USAGE, USAGE),
    "the other known": (USAGE, None, USAGE),
    "both": ({"a": 1, "b": 2}, {"a": 3, "b": 0.5}, {"a": 4, "b": 2.5}),
    "members of one only": ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    "details": (
        {"a": 1, "details": {"x": 1, "y": 2}},
        {"a": 1, "details": {"y": 3, "z": 4}},
        {"a": 2, "details": {"x": 1, "y": 5, "z": 4}},
    ),
    "details of one only": ({"a": 1}, {"details": {"x": 1}}, {"a": 1, "details": {"x": 1}}),
    "null counts for nothing": (
        {"a": None, "b": 1, "details": None},
        {"a": 1, "b": None, "details": {"x": 1}},
        {"a": 1, "b": 1, "details": {"x": 1}},
    ),
    "what is no number stays": (
        {"tier": "x", "flag": True, "a": 1, "l": [1], "details": {}},
        {"tier": "y", "flag": True, "a": "2", "l": [2], "details": 5},
        {"tier": "x", "flag": True, "a": 1, "l": [1], "details": {}},
    ),
    "numbers that no float can hold": ({"a": 10**400, "b": 0.5}, {"a": 0.5, "b": 10**400}, {"a": 10**400, "b": 0.5}),
}


@pytest.mark.parametrize(("total", "usage", "expected"), SUMS.values(), ids=SUMS)
def test_usages_add_up(total: Any, usage: Any, expected: Any) -> None:
    before = dumps([total, usage])
    summed = add_usage(total, usage)
    assert summed == expected
    assert dumps([total, usage]) == before
    assert summed is None or (summed is not total and summed is not usage)


@settings(deadline=None)
@given(_values, _values)
def test_any_usages_add_up(total: Any, usage: Any) -> None:
    add_usage(total if isinstance(total, dict) else None, usage if isinstance(usage, dict) else None)
