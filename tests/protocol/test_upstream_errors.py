"""Errors of upstreams: which objects report one, and whom it concerns."""

from __future__ import annotations

from typing import Any

import pytest

from quart_openai_sse.errors import (
    OpenAISSEError,
    UpstreamCredentials,
    UpstreamFailed,
    UpstreamQuota,
    UpstreamRefused,
)
from quart_openai_sse.protocol.error_shapes import read_report
from quart_openai_sse.protocol.upstream_errors import NO_SENTENCE, error_of, failure_of, reported_error

REPORTS: dict[str, Any] = {
    "OpenAI's": {"error": {"message": "m"}},
    "a string": {"error": "m", "code": "c"},
    "an array": [{"error": {"message": "m"}}],
    "an array of flat ones": [{"message": "m", "code": 503}],
    "errors": {"errors": [{"message": "m"}]},
    "detail": {"detail": {"message": "m"}},
    "vLLM's": {"object": "error", "message": "m"},
    "a flat one with a type": {"type": "error", "message": "m"},
    "a flat one with a code": {"message": "m", "code": 503},
    "a flat one with a status": {"title": "m", "status": 429},
    "msg": {"code": "1301", "msg": "m"},
    "error_msg": {"error_msg": "m"},
    "an exception": {"__type": "x", "type": "ThrottlingException", "message": "m"},
    "a flat one beside no choices": {"id": "", "choices": None, "message": "m", "code": 503},
    "no success": {"success": False, "message": "m", "result": None},
    "base_resp": {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "m"}},
    "base_resp beside choices": {"choices": [{"index": 0}], "base_resp": {"status_code": 1027, "status_msg": "m"}},
}


@pytest.mark.parametrize("value", REPORTS.values(), ids=REPORTS)
def test_an_error_is_known_in_every_shape_and_keeps_its_sentence(value: Any) -> None:
    error = reported_error(value)
    assert error is not None
    assert failure_of(error).message == failure_of(value).message == "m"


CHUNKS: dict[str, Any] = {
    "a chunk": {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    "usage alone": {"choices": [], "usage": {"total_tokens": 5}},
    "a chunk of MiniMax": {"choices": [{"index": 0}], "base_resp": {"status_code": 0, "status_msg": ""}},
    "success in a flat object": {"code": 200, "msg": "success"},
    "code 0": {"code": 0, "message": "ok"},
    "a ping": {"type": "ping"},
    "Ollama's message": {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": False},
    "progress": {"status": "pulling", "message": "one moment"},
    "no errors": {"errors": [], "success": True},
    "an array of chunks": [{"choices": []}],
    "a number": 5,
}


@pytest.mark.parametrize("value", CHUNKS.values(), ids=CHUNKS)
def test_what_reports_no_error_is_not_taken_for_one(value: Any) -> None:
    assert reported_error(value) is None


OURS, SPENT, THEIRS = UpstreamCredentials, UpstreamQuota, UpstreamFailed

CONCERNS: dict[str, tuple[Any, type[OpenAISSEError], int]] = {
    "our key": ({"message": "m", "code": "invalid_api_key"}, OURS, 502),
    "401": ({"message": "m", "code": 401}, OURS, 502),
    "401 as a text": ({"message": "m", "code": "401"}, OURS, 502),
    "403": ({"message": "m", "code": 403}, OURS, 502),
    "Google's key": ({"code": 400, "message": "m", "details": [{"reason": "API_KEY_INVALID"}]}, OURS, 502),
    "xAI's key": ({"code": "invalid", "error": "Incorrect API key provided: x", "status": 400}, OURS, 502),
    "402": ({"message": "m", "code": 402}, SPENT, 502),
    "OpenAI's quota": ({"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}, SPENT, 502),
    "a hard limit": ({"message": "m", "code": "billing_hard_limit_reached"}, SPENT, 502),
    "a quota with 403": ({"message": "m", "code": "insufficient_user_quota", "status": 403}, SPENT, 502),
    "a balance with 401": ({"message": "Insufficient balance. Manage your billing.", "code": 401}, SPENT, 502),
    "a balance with 429": ({"message": "Your account has insufficient balance", "code": 429}, SPENT, 502),
    "a balance with 400": ({"message": "Your credit balance is too low to do so.", "code": 400}, SPENT, 502),
    "MiniMax's balance": ({"status_code": 1008, "status_msg": "insufficient balance"}, SPENT, 502),
    "a balance in another place": ({"message": "Invalid value: 'insufficient balance'", "code": 400}, THEIRS, 400),
    # The sentence that OpenAI uses for a spent quota is Google's for its limit per minute.
    "Google's rate": (
        {"code": 429, "message": "You exceeded your current quota, check your plan.", "status": "RESOURCE_EXHAUSTED"},
        THEIRS,
        429,
    ),
    "a rate without a number": ({"message": "m", "type": "rate_limit_error"}, THEIRS, 429),
    "an overload": ({"message": "m", "type": "overloaded_error"}, THEIRS, 503),
    "a model": ({"message": "m", "code": "model_not_found"}, THEIRS, 404),
    "a model with 403": ({"message": "m", "code": "model_not_found", "status": 403}, THEIRS, 403),
    "a model that the project has not": ({"code": 403, "message": "You do not have access to model `x`"}, THEIRS, 403),
    "a moderation": ({"code": 403, "message": "no", "metadata": {"reasons": ["violence"]}}, THEIRS, 403),
    "a moderation in words": ({"code": 403, "message": "Input flagged by moderation"}, THEIRS, 403),
    "guidelines": ({"code": 403, "message": "Content violates usage guidelines."}, THEIRS, 403),
    "no model in words": ({"code": 403, "message": "You don't have access to the model with that ID."}, THEIRS, 403),
    "no such right": ({"code": 403, "message": "The key is not authorized to use this model."}, THEIRS, 403),
    "a model that is not allowed": ({"code": 403, "message": "Model not allowed"}, THEIRS, 403),
    "a blocked prompt": ({"code": 403, "message": "The prompt was blocked."}, THEIRS, 403),
    "a blocked request": ({"code": 403, "message": "Your request was blocked."}, OURS, 502),
    "a suspended account": (
        {"code": 403, "message": "Your account was suspended for violating our usage policies."},
        OURS,
        502,
    ),
    "a key that was revoked": (
        {"code": 403, "message": "Your API key has been revoked for a policy violation"},
        OURS,
        502,
    ),
    "an access that was terminated": (
        {"code": 403, "message": "Your access was terminated due to violation of our policies"},
        OURS,
        502,
    ),
    "Groq's organization": ({"message": "m", "code": "organization_restricted", "status": 400}, OURS, 502),
    "Groq's spend limit": ({"message": "m", "code": "blocked_api_access", "status": 400}, SPENT, 502),
    "Fireworks' spending limit": (
        {"code": 412, "message": "Account acme is suspended, possibly due to reaching the monthly spending limit"},
        SPENT,
        502,
    ),
    "xAI's new team": ({"code": 403, "message": "Your team doesn't have any credits yet."}, SPENT, 502),
    "a rate that says it costs nothing": ({"code": 429, "message": "Slow down. No credits were charged."}, THEIRS, 429),
    "a policy without a number": ({"message": "m", "code": "content_policy_violation"}, THEIRS, 400),
    "a filter with 400": ({"message": "m", "code": "content_filter", "status": 400}, THEIRS, 400),
    "a prompt about money that is flagged": (
        {"code": 403, "message": "'insufficient balance' was flagged"},
        THEIRS,
        403,
    ),
    "anything else": ({"message": "m"}, THEIRS, 502),
}


@pytest.mark.parametrize(("error", "kind", "status"), CONCERNS.values(), ids=CONCERNS)
def test_an_error_concerns_our_key_our_account_or_the_caller(
    error: Any, kind: type[OpenAISSEError], status: int
) -> None:
    found = failure_of(error)
    assert (type(found), found.status) == (kind, status)


def test_of_our_key_callers_are_told_nothing_and_of_our_account_no_amounts() -> None:
    said = "Account acme-77 has $0.02; key sk-1***2"
    for code, told in (
        (401, "The upstream refused our key within its stream."),
        (402, "Account [account] has [amount]; key [key]"),
    ):
        error = failure_of({"code": code, "message": said})
        assert (error.message, error.status, error.should_retry) == (told, 502, False)
        assert error.withheld == (f"status {code}: Account acme-77 has $0.02; key [key]",)  # type: ignore[attr-defined]
    assert failure_of({"code": 402}).message == "Our account's credit or quota is used up within its stream."


def refused(error: object, *, status: int | None = None) -> UpstreamRefused:
    """The refusal that *error* is, with this status."""
    found = error_of(read_report(error), cls=UpstreamRefused, status=status, place="")
    assert type(found) is UpstreamRefused
    return found


def test_an_error_before_the_first_byte_keeps_its_status() -> None:
    error = refused({"message": "m", "type": "t", "code": "c", "param": "p"}, status=400)
    assert (error.status, error.type, error.code, error.param) == (400, "t", "c", "p")
    unnamed = refused(None, status=404)
    assert (unnamed.message, unnamed.status, unnamed.code) == (NO_SENTENCE, 404, "upstream_refused")


def test_what_was_taken_out_of_a_sentence_is_kept_for_the_log() -> None:
    error = refused({"message": "org-abc at http://vllm.internal:8000 is busy"}, status=503)
    assert error.message == "[account] at [address] is busy"
    assert error.withheld == ("http://vllm.internal:8000", "org-abc")


def test_codes_and_types_that_name_what_callers_are_not_shown_are_left_out() -> None:
    error = refused({"message": "m", "type": "at api.acme.com", "code": "sk-abc123def456"})
    assert (error.type, error.code) == ("upstream_error", "upstream_refused")


def test_the_callers_own_words_are_passed_on_with_a_refusal_of_the_request() -> None:
    said = {"message": "m", "failed_generation": '{"name": "f"}'}
    error = refused(said, status=400)
    assert error.body()["error"]["failed_generation"] == '{"name": "f"}'
    assert "failed_generation" not in refused(said, status=500).body()["error"]
    assert "failed_generation" not in failure_of({**said, "code": 402}).body()["error"]
    long = {**said, "failed_generation": "x" * 20_000}
    assert "failed_generation" not in refused(long, status=400).body()["error"]


def test_members_of_the_error_cannot_be_replaced_by_those_that_are_passed_on() -> None:
    error = refused({"message": "m", "code": "c"}, status=400)
    error.passed_on = {"message": "other", "more": 1}
    assert error.body()["error"] == {**error.body()["error"], "message": "m", "more": 1}
