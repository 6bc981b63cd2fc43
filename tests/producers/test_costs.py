"""What a request upstream costs: while it runs, when it is whole, and when it failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quart_openai_sse.errors import (
    ConnectTimeout,
    EventTooLong,
    FirstOutputTimeout,
    GapTimeout,
    InvalidRequest,
    OpenAISSEError,
    ServerShutdown,
    StreamTooLong,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.producers.costs import RequestCost
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion

PROMPT = 100


class Request:
    """A request whose prompt is estimated at 100 tokens."""

    def __init__(self) -> None:
        self.completion = Completion()
        self.cost = RequestCost(PROMPT, self.completion)

    def feed(self, content: str = "", *, reason: str | None = None, usage: dict[str, Any] | None = None) -> None:
        delta = {"content": content} if content else {}
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        self.completion.feed(json.encode({"choices": choices, "usage": usage}))
        self.cost.chunks += 1


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def test_it_costs_nothing_until_it_is_sent_then_its_prompt_and_a_token_for_each_chunk() -> None:
    request = Request()
    assert request.cost.known() == 0
    request.cost.begin()
    assert request.cost.known() == PROMPT
    request.feed("one")
    request.feed("two")
    assert request.cost.known() == PROMPT + 2


@pytest.mark.parametrize("total", [7, 300])
def test_a_whole_answer_costs_its_usage_be_it_more_or_less_than_the_estimate(total: int) -> None:
    request = Request()
    request.cost.begin()
    request.feed("one")
    request.feed(reason="stop", usage=usage(total - 5, 5))
    assert request.cost.known() == total


def test_usage_within_a_stream_lowers_nothing_and_is_not_older_than_the_chunks() -> None:
    request = Request()
    request.cost.begin()
    request.feed("one", usage=usage(7, 1))
    assert request.cost.known() == PROMPT + 1
    request.feed("two", usage=usage(900, 40))
    assert request.cost.known() == 940
    for _ in range(60):
        request.feed("more")
    assert request.cost.known() == 900 + 62


def test_the_usage_of_a_prompt_alone_is_not_that_of_an_answer() -> None:
    request = Request()
    request.cost.begin()
    request.feed("one", usage=usage(7, 0))
    request.feed("two")
    request.feed(reason="stop")
    assert request.cost.known() == PROMPT + 3


def test_an_answer_in_one_piece_without_usage_costs_its_text() -> None:
    request = Request()
    request.cost.begin()
    request.cost.answer = 50
    assert (request.cost.known(complete=True), request.cost.is_open) == (150, False)


REFUSED = UpstreamRefused("no", status=503)
TRUNCATED = UpstreamTruncated("cut")


@pytest.mark.parametrize(
    ("errors", "tokens"),
    [
        ([REFUSED], 0),
        ([UpstreamRefused("no", status=400)], 0),
        ([UpstreamFailed("no", status=429)], 0),
        ([UpstreamCredentials("no")], 0),
        ([UpstreamUnreachable("no")], 0),
        ([ConnectTimeout("no")], 0),
        ([UpstreamError("a redirect")], 0),
        ([InvalidRequest("no")], 0),
        ([ValueError("the app's key function")], 0),
        ([OpenAISSEError("The stream failed.")], 0),
        ([REFUSED, UpstreamUnreachable("no"), REFUSED], 0),
        ([TRUNCATED], PROMPT),
        ([UpstreamGarbled("no answer")], PROMPT),
        ([EventTooLong("large")], PROMPT),
        ([StreamTooLong("large")], PROMPT),
        ([FirstOutputTimeout("late")], PROMPT),
        ([TotalTimeout("late")], PROMPT),
        ([ServerShutdown("restart")], PROMPT),
        ([asyncio.CancelledError()], PROMPT),
        ([REFUSED, TRUNCATED, REFUSED], PROMPT),
        ([FirstOutputTimeout("late"), REFUSED], PROMPT),
    ],
    ids=lambda value: "+".join(type(each).__name__ for each in value) if isinstance(value, list) else str(value),
)
def test_an_error_in_place_of_an_answer_costs_nothing(errors: list[BaseException], tokens: int) -> None:
    request = Request()
    for error in errors:
        request.cost.begin()
        request.cost.failed(error)
    assert request.cost.known() == tokens


@pytest.mark.parametrize("error", [GapTimeout("late"), UpstreamFailed("no", status=503)])
def test_an_error_after_output_costs_what_was_sent(error: OpenAISSEError) -> None:
    request = Request()
    request.cost.begin()
    request.feed("one")
    request.cost.failed(error)
    assert request.cost.known() == PROMPT + 1


def test_nothing_is_charged_between_two_attempts() -> None:
    request = Request()
    request.cost.begin()
    request.cost.failed(REFUSED)
    request.cost.failed(asyncio.CancelledError())  # the caller disconnects before the next attempt
    assert request.cost.known() == 0
