"""The error tree, walked: what every error answers, and what it says to whom."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import get_args

import pytest

from quart_openai_sse import errors
from quart_openai_sse.errors import (
    ConfigurationError,
    Draining,
    InvalidRequest,
    OpenAISSEError,
    RequestError,
    Side,
    StreamStopped,
    TooManyStreams,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)


def _tree(cls: type[OpenAISSEError] = OpenAISSEError) -> Iterator[type[OpenAISSEError]]:
    yield cls
    for each in cls.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _tree(each)


ALL = list(_tree())


def create(cls: type[OpenAISSEError], message: str = "") -> OpenAISSEError:
    return cls(message, status=400) if issubclass(cls, UpstreamRefused) else cls(message)


def test_every_class_of_the_module_is_in_the_tree() -> None:
    classes = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)}
    assert classes == set(ALL)


def test_every_error_has_a_status_a_type_a_code_a_side_and_a_sentence() -> None:
    for cls in ALL:
        error = create(cls)
        assert 400 <= error.status < 600, cls
        assert re.fullmatch("[a-z_]+", error.type), cls
        assert error.code, cls
        assert re.fullmatch("[a-z_]+", error.code), cls
        assert error.side in get_args(Side), cls
        assert re.fullmatch(r"[A-Z][^\n]{9,}\.", error.user_message), cls
        assert (cls.__doc__ or "").endswith("."), cls


def test_every_errors_body_is_openais() -> None:
    for cls in ALL:
        error = create(cls, "What happened.")
        assert str(error) == error.message == "What happened."
        assert error.body() == {
            "error": {
                "message": "What happened.",
                "type": error.type,
                "param": error.param,
                "code": error.code,
                "user_message": error.user_message,
            }
        }


def test_an_error_without_a_message_says_what_a_person_is_told() -> None:
    # UpstreamRefused chooses its sentence by the status, later: it always comes with a message.
    unlike = [cls for cls in ALL if not issubclass(cls, UpstreamRefused) and create(cls).message != cls.user_message]
    assert unlike == []


def test_every_errors_side_fits_its_status() -> None:
    for cls in ALL:
        statuses = range(400, 500) if cls.side == "caller" else range(500, 600)
        assert cls.status in ((502, 504) if issubclass(cls, UpstreamError) else statuses), cls
        assert (cls.side == "upstream") == issubclass(cls, UpstreamError), cls


def test_what_an_error_says_about_retrying_is_what_sdks_can_use() -> None:
    for cls in ALL:
        headers = create(cls).headers()
        assert headers.keys() <= {"Retry-After", "x-should-retry"}, cls
        # Above 120 seconds the SDKs don't retry at all, at 0 they choose for themselves.
        assert 0 < int(headers.get("Retry-After", 1)) <= 120, cls
        # 409 is retried by default, which would start again what somebody has just stopped.
        assert cls.status != 409 or headers["x-should-retry"] == "false", cls


def test_no_two_errors_share_a_code_unless_one_is_a_kind_of_the_other() -> None:
    by_code: dict[str | None, set[type[OpenAISSEError]]] = defaultdict(set)
    for cls in ALL:
        by_code[cls.code].add(cls)
    shared = {code: classes for code, classes in by_code.items() if len(classes) > 1}
    assert shared == {
        "invalid_request": {RequestError, InvalidRequest},
    }


def test_the_visitor_never_sees_a_401_for_our_own_key() -> None:
    error = UpstreamCredentials("The upstream refused our key.")
    assert (error.status, error.side, error.headers()) == (502, "upstream", {"x-should-retry": "false"})
    assert [cls.__name__ for cls in ALL if cls.status == 401] == ["AuthenticationRequired"]


def test_an_instance_may_say_more_than_its_class() -> None:
    error = InvalidRequest("m", param="model", code="c", retry_after=3)
    assert (error.param, error.code, error.retry_after) == ("model", "c", 3)
    assert (InvalidRequest.param, InvalidRequest.code, InvalidRequest.retry_after) == (None, "invalid_request", None)
    assert InvalidRequest("m", code="").code == ""


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [(0, "0"), (0.2, "1"), (0.5, "1"), (1, "1"), (1.2, "2"), (2.5, "3"), (120.0, "120"), (-3, "0")],
)
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float, sent: str) -> None:
    assert OpenAISSEError(retry_after=seconds).headers() == {"Retry-After": sent}


@pytest.mark.parametrize(("should_retry", "sent"), [(True, "true"), (False, "false")])
def test_should_retry_is_told_as_the_sdks_read_it(should_retry: bool, sent: str) -> None:
    error = OpenAISSEError()
    error.should_retry = should_retry
    assert error.headers() == {"x-should-retry": sent}


def test_the_headers_of_some() -> None:
    assert OpenAISSEError().headers() == {}
    assert TooManyStreams().headers() == {"Retry-After": "5"}
    assert Draining().headers() == {"Retry-After": "2"}
    assert StreamStopped().headers() == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (400, "invalid_request_error", "The AI service did not accept this request."),
        (404, "invalid_request_error", "The AI service did not accept this request."),
        (429, "rate_limit_exceeded", "The AI service is busy. Please try again in a moment."),
        (500, "upstream_error", UpstreamError.user_message),
        (503, "upstream_error", UpstreamError.user_message),
    ],
)
@pytest.mark.parametrize("cls", [UpstreamRefused, UpstreamFailed])
def test_a_refusal_of_the_upstream_keeps_its_status(
    cls: type[UpstreamRefused], status: int, kind: str, told: str
) -> None:
    error = cls("m", status=status)
    assert (error.status, error.type, error.code, error.user_message) == (status, kind, cls.code, told)
    full = cls("m", status=status, type="t", code="c", param="p", retry_after=1, should_retry=True)
    assert (full.type, full.code, full.param) == ("t", "c", "p")
    assert full.headers() == {"Retry-After": "1", "x-should-retry": "true"}
    assert (cls.user_message, cls.type) == (UpstreamError.user_message, "upstream_error")


def test_each_phase_of_a_timeout_has_its_own_code() -> None:
    phases = UpstreamTimeout.__subclasses__()
    assert {cls.code for cls in phases} == {
        "connect_timeout",
        "first_output_timeout",
        "gap_timeout",
        "total_timeout",
    }
    assert {cls.status for cls in phases} == {504}


def test_a_wrong_configuration_is_ours() -> None:
    assert issubclass(ConfigurationError, OpenAISSEError)
    assert ConfigurationError.side == "server"
