"""The error tree: what each error answers, and its sentences for developers and users."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import get_args

import pytest

from quart_openai_sse import errors
from quart_openai_sse.errors import (
    AuthenticationRequired,
    ConfigurationError,
    Draining,
    ErrorValue,
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
from quart_openai_sse.protocol import json


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


def failing(rule: Callable[[type[OpenAISSEError]], bool]) -> list[str]:
    """The errors that break a rule."""
    return [cls.__name__ for cls in ALL if not rule(cls)]


def test_every_error_has_a_status_a_type_a_code_a_side_and_a_sentence() -> None:
    assert failing(lambda cls: 400 <= create(cls).status < 600) == []
    assert failing(lambda cls: bool(re.fullmatch("[a-z_]+", create(cls).type))) == []
    assert failing(lambda cls: bool(re.fullmatch("[a-z_]+", create(cls).code or ""))) == []
    assert failing(lambda cls: create(cls).side in get_args(Side)) == []
    assert failing(lambda cls: bool(re.fullmatch(r"[A-Z][^\n]{9,}\.", create(cls).user_message))) == []
    assert failing(lambda cls: (cls.__doc__ or "").endswith(".")) == []


def test_every_errors_body_is_openais() -> None:
    def has_it(cls: type[OpenAISSEError]) -> bool:
        error = create(cls, "What happened.")
        body = {
            "message": "What happened.",
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "user_message": error.user_message,
        }
        return str(error) == error.message == "What happened." and error.body() == {"error": body}

    assert failing(has_it) == []


def test_an_error_without_a_message_has_its_user_message() -> None:
    # UpstreamRefused is left out: it sets its sentence by the status, and always has a message.
    assert failing(lambda cls: issubclass(cls, UpstreamRefused) or create(cls).message == cls.user_message) == []


def test_every_errors_side_fits_its_status() -> None:
    def fits(cls: type[OpenAISSEError]) -> bool:
        if issubclass(cls, UpstreamError):
            return cls.side == "upstream" and cls.status in (502, 504)
        return cls.side != "upstream" and cls.status in (range(400, 500) if cls.side == "caller" else range(500, 600))

    assert failing(fits) == []


def test_the_retry_headers_are_valid_for_sdks() -> None:
    assert failing(lambda cls: create(cls).headers().keys() <= {"Retry-After", "x-should-retry"}) == []
    # Above 120 seconds the SDKs do not retry; at 0 they use their own delay.
    assert failing(lambda cls: 0 < int(create(cls).headers().get("Retry-After", 1)) <= 120) == []
    # SDKs retry a 409 by default, which would restart a stream that has just been stopped.
    assert failing(lambda cls: cls.status != 409 or create(cls).headers()["x-should-retry"] == "false") == []


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


def test_a_401_is_an_authentication_error_for_clients_that_search_its_text() -> None:
    # LiteLLM 1.106.2 raises BadRequestError if the text of any error has the words invalid_request_error.
    error = AuthenticationRequired()
    assert (error.status, error.type, error.code) == (401, "authentication_error", "invalid_api_key")
    assert b"invalid_request_error" not in json.encode(error.body())


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


# As values ----------------------------------------------------------------------------------------------------------


class Odd(InvalidRequest):
    """An app's own, with arguments and an attribute of its own."""

    code = "odd"

    def __init__(self, ticket: int) -> None:
        super().__init__(f"Ticket {ticket}.", param="ticket")
        self.ticket = ticket


def members(error: OpenAISSEError) -> tuple[object, ...]:
    """All that can be told of an error."""
    return type(error), error.status, error.body(), error.headers(), error.args


CHANGED = UpstreamRefused("no", status=429, type="t", code="c", param="p", retry_after=1.5, should_retry=False)
SAMPLES = [
    *(create(cls, "What happened.") for cls in ALL),
    CHANGED,
    TooManyStreams("x", code="y", retry_after=9),
    Odd(7),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_can_be_copied_pickled_and_rebuilt_from_its_value(error: OpenAISSEError) -> None:
    assert members(copy.copy(error)) == members(error)
    assert members(copy.deepcopy(error)) == members(error)
    assert members(pickle.loads(pickle.dumps(error))) == members(error)
    value = ErrorValue.of(error)
    assert members(value.exception()) == members(error)
    assert value.exception() is not value.exception()
    assert pickle.loads(pickle.dumps(value)) == value == ErrorValue.of(value.exception())
    json.encode(asdict(value))


def test_a_copy_of_an_error_keeps_what_a_class_of_the_app_adds() -> None:
    assert copy.copy(Odd(7)).ticket == pickle.loads(pickle.dumps(Odd(7))).ticket == 7


def test_an_error_whose_class_is_unknown_here_keeps_its_members() -> None:
    value = replace(ErrorValue.of(CHANGED), name="elsewhere.Unknown")
    error = value.exception()
    assert type(error) is OpenAISSEError
    assert (error.status, error.body(), error.headers()) == (429, CHANGED.body(), CHANGED.headers())


def test_the_value_of_an_error_holds_nothing_of_the_code_that_raised_it() -> None:
    def fail() -> OpenAISSEError:
        request = {1, 2, 3}
        try:
            raise Odd(len(request))
        except Odd as error:
            return error

    error = fail()
    watched = weakref.ref(error)
    value = ErrorValue.of(error)
    del error
    assert watched() is None
    assert value.exception().__traceback__ is None
