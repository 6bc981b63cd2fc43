"""Refusals: the error for each body, what callers are told of it, and what the log is."""

from __future__ import annotations

import gzip
import logging
import tracemalloc
import zlib
from typing import Any

import pytest

from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamQuota, UpstreamRefused
from quart_openai_sse.protocol import json
from quart_openai_sse.upstreams.refusals import log_withheld, refusal

WHY = {"error": {"message": "Unknown name x"}}
ENCODED = json.encode(WHY)
NOTHING = "The upstream answered with status 400."

BODIES: dict[str, tuple[bytes, dict[str, str], str]] = {
    "JSON": (ENCODED, {}, "Unknown name x"),
    "gzip": (gzip.compress(ENCODED), {"content-encoding": "gzip"}, "Unknown name x"),
    "gzip that is not announced": (gzip.compress(ENCODED), {}, "Unknown name x"),
    "gzip that the client has unpacked": (ENCODED, {"content-encoding": "gzip"}, "Unknown name x"),
    "deflate": (zlib.compress(ENCODED), {"content-encoding": "deflate"}, "Unknown name x"),
    "JSON that is cut": (ENCODED[:-1] + b', "input": "' + b"x" * 400, {}, "Unknown name x"),
    "JSON that is cut before the sentence": (b'{"error": {"code": 5', {}, NOTHING),
    "JSON that is cut in the sentence": (b'{"error": {"message": "Unknown \\u006eame x', {}, "Unknown name x"),
    "JSON that is cut in a character": (b'{"error": {"message": "Unknown \\u00', {}, NOTHING),
    "text in brackets": (b"[error] no such route", {}, "[error] no such route"),
    "broken gzip": (b"\x1f\x8b\x08\x00broken", {"content-encoding": "gzip"}, NOTHING),
    "another encoding": (b"\x8b\x03\x80\x00\xff\xfe", {"content-encoding": "br"}, NOTHING),
    "an event stream": (b'event: error\ndata: {"message": "Unknown name x"}\n\n', {}, "Unknown name x"),
    "an event with a field of its own": (b'error: {"message": "Unknown name x"}\n\n', {}, "Unknown name x"),
    "an event stream that begins with other events": (
        b'retry: 5\ndata: {"type": "ping"}\n\nevent: error\ndata: {"message":\ndata: "Unknown name x"}\n\n',
        {},
        "Unknown name x",
    ),
    "JSON after a byte order mark": (b"\xef\xbb\xbf" + ENCODED, {}, "Unknown name x"),
    "an event stream without data": (b": nothing\n\n", {}, NOTHING),
    "HTML": (b"\n<!doctype html><h1>no</h1>", {}, NOTHING),
    "text": (b"no such\nroute", {}, "no such route"),
    "an empty object": (b"{}", {}, NOTHING),
    "an object that says nothing": (b'{"id": 5}', {}, NOTHING),
    "an empty list": (b"[]", {}, NOTHING),
}


@pytest.mark.parametrize(("body", "headers", "message"), BODIES.values(), ids=BODIES)
def test_the_sentence_is_found_in_every_body_and_no_garbage_is_shown(
    body: bytes, headers: dict[str, str], message: str
) -> None:
    assert refusal(400, headers, body).message == message


def test_a_body_that_unpacks_to_very_much_is_unpacked_to_its_beginning_only() -> None:
    body = gzip.compress(b'{"error": "' + b"x" * 20_000_000)
    assert len(body) < 64 << 10
    tracemalloc.start()
    try:
        error = refusal(500, {"content-encoding": "gzip"}, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert len(error.message) <= 300


KEY, SPENT, THEIRS = UpstreamCredentials, UpstreamQuota, UpstreamRefused
FLAGGED = {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"]}}}
XAI = {
    "code": "The caller does not have permission to execute the specified operation",
    "error": "Content violates usage guidelines. Team: 8d1f-22, Model: grok, Failed check: SAFETY_CHECK_TYPE_BIO",
}

CONCERNS: dict[str, tuple[int, bytes, type[OpenAISSEError], int]] = {
    "401": (401, b"{}", KEY, 502),
    "403": (403, b"{}", KEY, 502),
    "a firewall's page": (403, b"<html>Your request was flagged by our safety guidelines</html>", KEY, 502),
    "a key without the right": (403, b'{"error": "This key has no access to the API"}', KEY, 502),
    "402": (402, b"{}", SPENT, 502),
    "DeepSeek's 402": (402, b'{"error": {"message": "Insufficient Balance", "code": "invalid"}}', SPENT, 502),
    "OpenAI's quota": (429, b'{"error": {"message": "m", "code": "insufficient_quota"}}', SPENT, 502),
    "a quota with 403": (403, b'{"error": {"message": "m", "code": "insufficient_user_quota"}}', SPENT, 502),
    "credits with 403": (403, b'{"error": "Your team has used all available credits"}', SPENT, 502),
    "a balance with 401": (401, b"Insufficient balance", SPENT, 502),
    "a rate": (429, b'{"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}', THEIRS, 429),
    "OpenRouter's moderation": (403, json.encode(FLAGGED), THEIRS, 403),
    "xAI's guidelines": (403, json.encode(XAI), THEIRS, 403),
    "a model that the project has not": (403, b'{"error": {"message": "m", "code": "model_not_found"}}', THEIRS, 403),
    "no such model": (404, b'{"error": {"message": "m", "code": "model_not_found"}}', THEIRS, 404),
    "a policy": (400, b'{"error": {"message": "m", "code": "content_policy_violation"}}', THEIRS, 400),
    "Google's key": (400, b'[{"error": {"message": "API key not valid. Please pass one."}}]', KEY, 502),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "told"), CONCERNS.values(), ids=CONCERNS)
def test_a_refusal_concerns_our_key_our_account_or_the_caller(
    status: int, body: bytes, kind: type[OpenAISSEError], told: int
) -> None:
    error = refusal(status, {}, body)
    assert (type(error), error.status) == (kind, told)


def test_of_a_moderation_the_caller_is_told_the_reason_but_not_our_account() -> None:
    message = refusal(403, {}, json.encode(XAI)).message
    assert (
        message
        == "Content violates usage guidelines. Team: [account], Model: grok, Failed check: SAFETY_CHECK_TYPE_BIO"
    )


RETRY_INFO = json.encode([{"error": {"code": 429, "message": "m", "details": [{"retryDelay": "37s"}]}}])


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, RETRY_INFO, 37),
        ({"retry-after": "5"}, RETRY_INFO, 5),
        ({"retry-after-ms": "1500"}, RETRY_INFO, 1.5),
        ({"retry-after": "5, 9"}, RETRY_INFO, 5),
        ({"retry-after": "garbage"}, RETRY_INFO, 37),
        ({}, b'{"error": {"message": "Please try again in 1.2s."}}', 1.2),
        ({}, b"{}", None),
    ],
)
def test_a_header_says_when_to_ask_again_and_otherwise_the_error(
    headers: dict[str, str], body: bytes, seconds: float | None
) -> None:
    assert refusal(429, headers, body).retry_after == seconds
    assert refusal(400, {}, body).retry_after is None


# The log --------------------------------------------------------------------------------------------------------------


def logged(error: OpenAISSEError, caplog: pytest.LogCaptureFixture, messages: Any = ()) -> list[str]:
    """The lines about what callers are not told. They are logged once."""
    caplog.set_level(logging.DEBUG, "quart_openai_sse")
    for _ in range(2):
        log_withheld("acme", error, {"model": "m", "messages": messages})
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    return [record.getMessage() for record in caplog.records]


def test_the_log_says_what_callers_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    error = refusal(503, {}, b"no capacity for org-abc at http://10.0.0.7:8000/x")
    assert error.message == "no capacity for [account] at [address]"
    assert logged(error, caplog) == [
        "acme: upstream_refused; callers are not told: status 503: http://10.0.0.7:8000/x, org-abc"
    ]


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (402, b"You have $0.02 left", "acme: upstream_quota; callers are not told: status 402: You have $0.02 left"),
        (
            403,
            b"org-abc may not\nuse sk-1***2",
            "acme: upstream_credentials; callers are not told: status 403: org-abc may not use [key]",
        ),
    ],
)
def test_the_log_says_why_our_account_or_our_key_is_refused(
    caplog: pytest.LogCaptureFixture, status: int, body: bytes, line: str
) -> None:
    assert logged(refusal(status, {}, body), caplog) == [line]


def test_a_line_of_the_log_is_short(caplog: pytest.LogCaptureFixture) -> None:
    [line] = logged(refusal(401, {}, b'{"error": "%b"}' % (b"word " * 5000)), caplog)
    assert len(line) < 400


@pytest.mark.parametrize("body", [b"bad request", b"<html>http://10.0.0.7</html>", b"{}"])
def test_nothing_is_logged_if_nothing_is_withheld(caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    assert logged(refusal(400, {}, body), caplog) == []


def test_no_prompt_reaches_the_log_if_an_upstream_quotes_it(caplog: pytest.LogCaptureFixture) -> None:
    prompt = [{"type": "text", "text": "Look at https://private.example/picture and tell me more"}]
    messages = [{"role": "user", "content": prompt}]
    for status, body in (
        (400, b"cannot load https://private.example/picture"),
        (403, b"refused: Look at https://private.example/picture and tell me more"),
    ):
        assert logged(refusal(status, {}, body), caplog, messages) == []


LONG = "My name is\n  Jo and the secret of my old house in the north of the town is under the third stone. Tell nobody."


@pytest.mark.parametrize("member", ["messages", "tools", "response_format"])
@pytest.mark.parametrize(
    "quoted",
    [
        LONG,
        " ".join(LONG.split()),  # in one line, as sentences are logged
        "\u2026" + LONG[30:90] + "\u2026",  # from its middle
        repr(LONG),
    ],
)
def test_no_part_of_a_request_reaches_the_log_however_it_is_quoted(
    caplog: pytest.LogCaptureFixture, member: str, quoted: str
) -> None:
    request = {member: [{"deep": {"text": LONG}}]}
    caplog.set_level(logging.DEBUG, "quart_openai_sse")
    log_withheld("acme", refusal(402, {}, json.encode({"error": {"message": f"Cannot pay for {quoted}"}})), request)
    assert caplog.records == []


def test_a_picture_in_a_request_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 200_000}}
    messages = [{"role": "user", "content": [picture]}]
    assert (
        len(logged(refusal(401, {}, b"This key was revoked for it was found on a public page"), caplog, messages)) == 1
    )


def test_of_a_request_too_long_to_be_searched_only_short_pieces_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "user", "content": "some words " * 200_000}]
    assert logged(refusal(401, {}, b"This key was revoked for it was found on a public page"), caplog, messages) == []
    [line] = logged(refusal(503, {}, b"no capacity at http://10.0.0.7"), caplog, messages)
    assert line.endswith("callers are not told: status 503: http://10.0.0.7")
    messages[0]["content"] += "http://10.0.0.7"
    caplog.clear()
    assert logged(refusal(503, {}, b"no capacity at http://10.0.0.7"), caplog, messages) == []


def test_a_deeply_nested_request_is_looked_through(caplog: pytest.LogCaptureFixture) -> None:
    value: Any = "Look at the moon"
    for _ in range(5000):
        value = [value]
    assert logged(refusal(402, {}, b"Look at the moon"), caplog, value) == []
