"""The rules of sending again: which failures, after how long, and when an upstream is spared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse import errors
from quart_openai_sse.errors import OpenAISSEError, UpstreamError, UpstreamFailed, UpstreamRefused
from quart_openai_sse.upstreams.breaker import BREAKER_TRANSITIONS, Breaker, BreakerState, CallResult
from quart_openai_sse.upstreams.retries import Backoff, is_failure, retryable, transferable, weight

CLOSED, OPEN, HALF_OPEN = BreakerState
GOOD, BAD, NOTHING = CallResult

AGAIN, ELSEWHERE, NOWHERE = (True, True, True), (False, True, False), (False, False, False)
STATUSES = {
    **dict.fromkeys((408, 429), AGAIN),
    **dict.fromkeys((500, 501, 502, 503, 504, 505, 507, 511, 520, 521, 522, 523, 524, 529, 530, 599), AGAIN),
    404: ELSEWHERE,
    **dict.fromkeys((400, 403, 405, 409, 413, 415, 418, 422, 425, 451, 499), NOWHERE),
}
"""Whether the same upstream may be asked again, whether another one may be, and whether its breaker counts it."""


@pytest.mark.parametrize("cls", [UpstreamRefused, UpstreamFailed])
@pytest.mark.parametrize(("status", "asked"), STATUSES.items())
def test_a_status_says_whom_to_ask_again(
    cls: type[UpstreamRefused], status: int, asked: tuple[bool, bool, bool]
) -> None:
    error = cls("no", status=status)
    assert (retryable(error), transferable(error), is_failure(error)) == asked


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("said", [True, False])
def test_what_the_upstream_says_about_it_stands_above_its_status(status: int, said: bool) -> None:
    error = UpstreamRefused("no", status=status, should_retry=said)
    assert retryable(error) is said
    # It is about the same upstream: another one may be asked all the same.
    assert transferable(error) is (said or STATUSES[status][1])


TRUTHS: list[list[OpenAISSEError]] = [
    [UpstreamRefused("no such model", status=404)],
    [errors.UpstreamCredentials(), errors.UpstreamQuota()],
    [errors.UpstreamUnreachable(), UpstreamRefused("down", status=503), errors.UpstreamGarbled()],
    [UpstreamRefused("busy", status=429, retry_after=60)],
    [UpstreamRefused("busy", status=503, retry_after=5)],
]
"""Failures, each list of more weight than the one before."""


def test_an_upstream_that_may_answer_later_says_more_than_a_refusal_of_ours_and_that_more_than_no_model() -> None:
    weights = [{weight(error) for error in alike} for alike in TRUTHS]
    assert all(len(alike) == 1 for alike in weights)
    assert weights == sorted(weights, key=max)


OTHERS = {
    "UpstreamUnreachable": (True, True),
    "ConnectTimeout": (True, True),
    "UpstreamTruncated": (True, True),
    "UpstreamError": (False, True),
    "UpstreamGarbled": (False, True),
    "UpstreamUnreadable": (False, True),
    "EventTooLong": (False, True),
    "UpstreamCredentials": (False, True),
    "UpstreamQuota": (False, True),
    "UpstreamTimeout": (False, True),
    "FirstOutputTimeout": (False, True),
    "GapTimeout": (False, True),
    "TotalTimeout": (False, True),
}
"""Whether the same upstream may be asked again, and another one: of errors without a status of the upstream."""


def test_the_table_has_every_error_of_the_upstreams_side() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, UpstreamError)]
    assert {each.__name__ for each in classes if not issubclass(each, UpstreamRefused)} == OTHERS.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_an_error_says_whom_to_ask_again(name: str) -> None:
    error = getattr(errors, name)()
    assert (retryable(error), transferable(error)) == OTHERS[name]


@pytest.mark.parametrize("cls", [OpenAISSEError, errors.StreamTooLong, errors.ModelFailed, errors.Draining])
def test_what_is_not_the_upstreams_failure_is_never_sent_again(cls: type[OpenAISSEError]) -> None:
    assert not retryable(cls())
    assert not transferable(cls())


# Waiting ------------------------------------------------------------------------------------------------------------

BUSY = UpstreamRefused("busy", status=429)


def test_each_wait_is_twice_the_one_before() -> None:
    backoff = Backoff()
    assert [backoff.wait(retry, BUSY, jitter=0) for retry in (1, 2, 3, 4)] == [1, 2, 4, None]
    assert [backoff.wait(retry, BUSY, jitter=1) for retry in (1, 2, 3)] == [0.75, 1.5, 3]


@given(st.integers(1, 6), st.floats(0, 1), st.floats(0, 150) | st.none())
def test_a_wait_is_never_shorter_than_it_was_asked_for(retry: int, jitter: float, asked: float | None) -> None:
    error = UpstreamRefused("busy", status=503, retry_after=asked)
    wait = Backoff(retries=50, longest=100).wait(retry, error, jitter=jitter)
    if asked is not None and asked > 100:
        assert wait is None
    else:
        assert wait is not None
        assert max(asked or 0, 0.75 * 2 ** (retry - 1)) <= wait <= max(asked or 0, 2 ** (retry - 1))


def test_what_is_not_to_be_asked_again_is_not_waited_for() -> None:
    assert Backoff().wait(1, UpstreamRefused("no", status=400), jitter=0) is None
    assert Backoff(retries=0).wait(1, BUSY, jitter=0) is None


# The breaker --------------------------------------------------------------------------------------------------------


def test_every_state_knows_every_outcome() -> None:
    assert BREAKER_TRANSITIONS.keys() == set(BreakerState)
    assert all(row.keys() == set(CallResult) for row in BREAKER_TRANSITIONS.values())


def send(breaker: Breaker, now: float, outcome: CallResult) -> None:
    breaker.enter(now)
    breaker.leave(outcome, now)


def test_failures_in_a_row_open_it_and_one_probe_closes_it() -> None:
    breaker = Breaker(failures=3, reset=10)
    for outcome in (BAD, BAD, GOOD, BAD, NOTHING, BAD):
        send(breaker, 0, outcome)
        assert breaker.state is CLOSED
    send(breaker, 1, BAD)
    assert (breaker.state, breaker.admits(10.9)) == (OPEN, False)
    assert breaker.admits(11)
    breaker.enter(11)
    assert (breaker.state, breaker.admits(11), breaker.admits(1000)) == (HALF_OPEN, False, False)
    breaker.leave(GOOD, 12)
    assert (breaker.state, breaker.admits(12)) == (CLOSED, True)
    send(breaker, 13, BAD)
    assert breaker.state is CLOSED  # they are counted anew


def test_a_probe_that_fails_opens_it_again_and_a_cancelled_one_leaves_its_place() -> None:
    breaker = Breaker(failures=1, reset=10)
    send(breaker, 0, BAD)
    send(breaker, 10, BAD)
    assert (breaker.admits(19.9), breaker.admits(20)) == (False, True)
    send(breaker, 20, NOTHING)
    assert (breaker.state, breaker.admits(20)) == (OPEN, True)


def test_the_end_of_a_request_that_began_before_it_opened_does_not_keep_it_open_longer() -> None:
    breaker = Breaker(failures=1, reset=10)
    breaker.enter(0)
    send(breaker, 0, BAD)
    breaker.leave(BAD, 9)
    assert breaker.admits(10)


@given(st.lists(st.tuples(st.sampled_from(CallResult), st.floats(0, 5)), max_size=60))
def test_it_is_never_shut_for_ever(steps: list[tuple[CallResult, float]]) -> None:
    breaker, now = Breaker(failures=3, reset=10), 0.0
    for outcome, pause in steps:
        now += pause
        if breaker.admits(now):
            send(breaker, now, outcome)
    assert breaker.state is not HALF_OPEN
    assert breaker.admits(now + 10)
