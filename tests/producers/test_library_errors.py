"""What the exceptions of libraries mean, alone and behind others."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import httpx
import pytest
import requests

from quart_openai_sse.errors import (
    ConnectTimeout,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    ModelTimeout,
    OpenAISSEError,
    StreamStopped,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.producers.library_errors import IN_PROCESS, LibraryError, library_error
from tests.producers.foreign_exceptions import LIBRARIES, SECRET, of, refusal_of, response
from tests.producers.test_exception_members import Hostile

RATE = refusal_of("openai", 429)


def meant(error: BaseException) -> LibraryError:
    found = library_error(error)
    assert found is not None
    assert SECRET not in found.summary + str(found.error)
    return found


def chained(*errors: BaseException, how: str = "cause") -> BaseException:
    """The first of *errors*, with each next one behind it."""
    for outer, inner in pairwise(errors):
        if how == "cause":
            outer.__cause__ = inner
        else:
            outer.__context__ = inner
            outer.__suppress_context__ = how == "hidden context"
    return errors[0]


# Statuses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("status", "told", "cls"),
    [
        (400, 400, UpstreamRefused),
        (401, 502, UpstreamCredentials),
        (403, 502, UpstreamCredentials),
        (404, 502, UpstreamError),
        (408, 504, UpstreamTimeout),
        (413, 413, UpstreamRefused),
        (422, 422, UpstreamRefused),
        (429, 429, UpstreamRefused),
        (500, 502, UpstreamRefused),
        (503, 502, UpstreamRefused),
    ],
)
def test_what_each_refusal_is_told_as(library: str, status: int, told: int, cls: type[OpenAISSEError]) -> None:
    found = meant(refusal_of(library, status))
    assert (type(found.error), found.error.status, found.expected) == (cls, told, True)
    assert found.error.should_retry is False  # whatever the status says to SDKs
    assert found.error.side == "upstream"
    if status == 429:
        assert found.error.headers() == {"Retry-After": "7", "x-should-retry": "false"}


def test_the_caller_is_told_what_the_server_said() -> None:
    error = of("BadRequestError APIStatusError APIError", status_code=400, body={"error": {"message": "Too long."}})
    assert (meant(error).error.message, meant(error).error.code) == ("Too long.", "upstream_refused")


def test_a_server_that_wants_to_be_asked_again_was_asked_again() -> None:
    error = of("APIStatusError", status_code=503, response=response(503, {"x-should-retry": "true"}))
    assert meant(error).error.headers() == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    "error",
    [
        of("APIError OpenAIError", body={"message": "The GPU broke.", "type": "server_error"}),
        of("APIStatusError APIError", status_code=200, body={"type": "error", "error": {"message": "The GPU broke."}}),
        of("ResponseError", status_code=-1, error="The GPU broke."),
    ],
    ids=["openai", "anthropic", "ollama"],
)
def test_an_error_within_the_librarys_stream_is_one_of_its_upstream(error: Exception) -> None:
    found = meant(error).error
    assert (type(found), found.status, found.message) == (UpstreamFailed, 502, "The GPU broke.")


# Connections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (httpx.ConnectTimeout(SECRET), ConnectTimeout),
        (requests.ConnectTimeout(SECRET), ConnectTimeout),
        (of("ConnectionTimeoutError ServerTimeoutError TimeoutError"), ConnectTimeout),
        (httpx.ReadTimeout(SECRET), UpstreamTimeout),
        (httpx.PoolTimeout(SECRET), UpstreamTimeout),
        (requests.ReadTimeout(SECRET), UpstreamTimeout),
        (of("APITimeoutError APIConnectionError APIError"), UpstreamTimeout),
        (of("Timeout APITimeoutError APIConnectionError APIError", status_code=408), UpstreamTimeout),
        (of("ServerTimeoutError ServerConnectionError ClientConnectionError TimeoutError"), UpstreamTimeout),
        (of("ReadTimeoutError HTTPClientError BotoCoreError"), UpstreamTimeout),
        (TimeoutError(), ModelTimeout),
        (of("TimeoutError SQLAlchemyError"), ModelTimeout),
        (httpx.ConnectError(SECRET), UpstreamUnreachable),
        (httpx.UnsupportedProtocol(SECRET), UpstreamUnreachable),
        (requests.ConnectionError(SECRET), UpstreamUnreachable),
        (of("APIConnectionError APIError"), UpstreamUnreachable),
        (of("APIConnectionError APIError", status_code=500), UpstreamUnreachable),
        (of("ClientConnectorError ClientOSError ClientConnectionError OSError"), UpstreamUnreachable),
        (ConnectionRefusedError(SECRET), UpstreamUnreachable),
        (httpx.RemoteProtocolError(SECRET), UpstreamTruncated),
        (httpx.ReadError(SECRET), UpstreamTruncated),
        (requests.exceptions.ChunkedEncodingError(SECRET), UpstreamTruncated),
        (of("ClientPayloadError ClientError"), UpstreamTruncated),
    ],
    ids=repr,
)
def test_timeouts_are_504_and_connections_502(error: Exception, cls: type[OpenAISSEError]) -> None:
    found = meant(error).error
    assert (type(found), found.status, found.should_retry) == (cls, 504 if "Timeout" in cls.__name__ else 502, False)


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (httpx.RemoteProtocolError(""), UpstreamTruncated),
        (httpx.ConnectError(""), UpstreamUnreachable),
        (httpx.ReadTimeout(""), UpstreamTimeout),
    ],
    ids=repr,
)
@pytest.mark.parametrize("wrapper", [{}, {"status_code": 500}], ids=["a connection error", "a made-up status"])
def test_what_a_wrapper_leaves_open_the_exception_behind_it_tells(
    error: Exception, cls: type[OpenAISSEError], wrapper: Any
) -> None:
    outer = of("InternalServerError APIStatusError APIError" if wrapper else "APIConnectionError APIError", **wrapper)
    assert type(meant(chained(outer, error)).error) is cls


# Chains and groups --------------------------------------------------------------------------------------------------

WAYS = {
    "itself": lambda error: error,
    "a cause": lambda error: chained(RuntimeError("agent"), error),
    "a cause of a cause": lambda error: chained(RuntimeError("agent"), KeyError("step"), error),
    "a context": lambda error: chained(RuntimeError("agent"), error, how="context"),
    "a group": lambda error: ExceptionGroup("agent", [error]),
    "a group with another": lambda error: ExceptionGroup("agent", [ValueError("mine"), error]),
    "groups": lambda error: ExceptionGroup("agent", [ExceptionGroup("step", [ValueError("mine"), error])]),
    "a group that is a cause": lambda error: chained(RuntimeError("agent"), BaseExceptionGroup("step", [error])),
    "a cause in a group": lambda error: ExceptionGroup("agent", [chained(RuntimeError("step"), error)]),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_error_of_ours_is_found_wherever_it_is(way: str) -> None:
    ours = InvalidRequest("No.", param="model", retry_after=3)
    found = meant(WAYS[way](ours))
    assert type(found.error) is InvalidRequest
    assert (found.error.message, found.error.param, found.error.headers()) == ("No.", "model", {"Retry-After": "3"})
    assert found.error is not ours  # which would hold its own traceback


@pytest.mark.parametrize("way", WAYS)
def test_a_librarys_error_is_found_wherever_it_is(way: str) -> None:
    assert meant(WAYS[way](RATE)).error.status == 429


@pytest.mark.parametrize("way", WAYS)
def test_it_is_expected_unless_something_else_was_raised_beside_it(way: str) -> None:
    surprises = {"a context", "a group with another", "groups"}
    assert meant(WAYS[way](RATE)).expected is (way not in surprises)


def test_several_refusals_in_a_group_are_expected() -> None:
    group = ExceptionGroup("fallbacks", [refusal_of("anthropic", 503), refusal_of("openai", 429)])
    assert (meant(group).error.status, meant(group).expected) == (502, True)


def test_a_librarys_error_that_was_raised_while_another_was_handled_is_expected() -> None:
    error = chained(refusal_of("litellm", 429), KeyError("x"), refusal_of("openai", 429), how="context")
    assert meant(error).expected


@pytest.mark.parametrize("error", [InvalidRequest("No."), RATE], ids=["ours", "a library's"])
def test_what_from_none_hides_is_hidden(error: Exception) -> None:
    assert library_error(chained(RuntimeError("agent"), error, how="hidden context")) is None


def test_an_error_of_ours_counts_more_than_the_librarys_around_it() -> None:
    found = meant(chained(refusal_of("openai", 500), refusal_of("httpx", 429), StreamStopped("enough")))
    assert (type(found.error), found.error.message) == (StreamStopped, "enough")


def test_the_nearest_of_a_librarys_errors_counts() -> None:
    assert meant(chained(refusal_of("pydantic-ai", 400), refusal_of("openai", 429))).error.status == 400


def test_a_retry_after_that_a_wrapper_leaves_out_is_found_behind_it() -> None:
    wrapper = of("RateLimitError APIStatusError", status_code=429)
    assert meant(chained(wrapper, refusal_of("openai", 429))).error.retry_after == 7
    assert meant(chained(wrapper, refusal_of("openai", 503))).error.retry_after is None


def test_exceptions_in_a_circle_are_looked_at_once() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    chained(first, second, first)
    assert library_error(first) is None
    second.__context__ = RATE
    second.__suppress_context__ = False
    assert meant(first).error.status == 429


def test_a_long_chain_is_looked_at_for_a_bounded_length() -> None:
    assert library_error(chained(*(RuntimeError(str(each)) for each in range(20_000)), RATE)) is None
    assert library_error(ExceptionGroup("many", [*(RuntimeError() for _ in range(20_000)), RATE])) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("agent"),
        of("OrderError", code=404),
        of("APIResponseValidationError APIError", status_code=200, response=response(200), body=None),
        of("APIError OpenAIError", body=None),
        Hostile(),
    ],
    ids=repr,
)
def test_nothing_is_known_of_other_exceptions(error: Exception) -> None:
    assert library_error(error) is None


class HostileMapping(Mapping[str, Any]):
    """A mapping that raises whatever is done with it."""

    def __getitem__(self, name: str) -> Any:
        raise RuntimeError(SECRET)

    def __iter__(self) -> Any:
        raise RuntimeError(SECRET)

    def __len__(self) -> int:
        raise RuntimeError(SECRET)


class HostileGroup(ExceptionGroup[Exception]):
    """A group whose exceptions cannot be read."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize("name", ["body", "response", "headers", "request", "details", "raw_response"])
def test_what_raises_while_an_exception_is_read_hides_no_error_behind_it(name: str) -> None:
    broken = of("APIError OpenAIError", **{name: HostileMapping()})
    assert library_error(broken) is None
    assert meant(chained(broken, RATE)).error.status == 429
    assert meant(ExceptionGroup("agent", [broken, RATE])).error.status == 429


def test_a_group_whose_exceptions_cannot_be_read_has_none() -> None:
    group = HostileGroup("agent", [ValueError()])
    assert library_error(group) is None
    assert meant(chained(group, RATE)).error.status == 429


def test_the_summary_has_classes_and_numbers_and_no_text() -> None:
    error = chained(RuntimeError(SECRET), of("RateLimitError APIError", status_code=429), KeyError(SECRET))
    assert meant(error).summary == (
        "builtins.RuntimeError, library.RateLimitError, builtins.KeyError (429, upstream_refused)"
    )


# Errors of this app's own routes ------------------------------------------------------------------------------------


def in_process(error: OpenAISSEError, *, within_stream: bool = False) -> Exception:
    """What OpenAI's SDK makes of *error* if `ai.transport()` has passed it on."""
    request = httpx.Request("POST", "http://app/v1", extensions={IN_PROCESS: True})
    body = error.body()["error"]
    if within_stream:
        return of("APIError OpenAIError", body=body, request=request)
    answer = httpx.Response(error.status, headers=error.headers(), json=error.body(), request=request)
    return of("APIStatusError APIError", body=body, status_code=error.status, response=answer, request=request)


@pytest.mark.parametrize("within_stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        UpstreamTruncated("Cut."),
        UpstreamTimeout("Slow."),
        ModelFailed("The app's model failed."),
        ModelNotFound("No."),
        UpstreamCredentials("Our key."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_ours_survives_the_transport(error: OpenAISSEError, within_stream: bool) -> None:
    found = meant(in_process(error, within_stream=within_stream)).error
    assert (type(found), found.status, found.body()) == (type(error), error.status, error.body())
    assert found.should_retry is False


def test_an_upstreams_own_code_survives_the_transport() -> None:
    refused = UpstreamRefused("Too long.", status=400, code="context_length_exceeded")
    found = meant(chained(refusal_of("pydantic-ai", 400), in_process(refused))).error
    assert (type(found), found.status, found.code) == (UpstreamRefused, 400, "context_length_exceeded")
    assert meant(in_process(UpstreamRefused("Broken.", status=500))).error.status == 502


@pytest.mark.parametrize("within_stream", [False, True])
def test_the_callers_own_words_survive_the_transport(within_stream: bool) -> None:
    refused = UpstreamRefused("Call failed.", status=400, code="tool_use_failed")
    refused.passed_on = {"failed_generation": "<f>{}</f>"}
    found = meant(in_process(refused, within_stream=within_stream)).error
    assert found.passed_on == {"failed_generation": "<f>{}</f>"}


def test_a_remote_server_cannot_say_that_it_is_this_app() -> None:
    body = {"message": "no", "code": "stopped", "user_message": "Call 555-0100 for help."}
    error = of("APIStatusError APIError", body=body, status_code=503, request=httpx.Request("POST", "http://far/v1"))
    assert meant(error).error.user_message == "The AI service had a problem. Please try again."
