"""What the exceptions of libraries mean: a refusal, an error within a stream, a timeout, a connection that broke."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from quart_openai_sse.errors import (
    ConnectTimeout,
    ErrorValue,
    ModelTimeout,
    OpenAISSEError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.producers.exception_members import (
    body_of,
    class_names,
    headers_of,
    member,
    response_of,
    retry_after_of,
    status_of,
)
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.upstream_errors import failure_of, reported_error
from quart_openai_sse.upstreams.refusals import refusal

IN_PROCESS = "quart_openai_sse"
"""The extension of a request of httpx that `ai.transport()` passes to this app: an error in its answer is our own."""

_MOST = 100  # exceptions that are looked at
_CALLERS = frozenset({400, 403, 413, 422, 429, 451})
"""Statuses that the caller's question can be the reason for; 403 if the upstream says that it is about the content."""


@dataclass(frozen=True, slots=True)
class LibraryError:
    """What an exception of an app's model means."""

    error: OpenAISSEError
    """For the caller. A new exception."""
    summary: str
    """The classes of the exceptions, the status and the code, for a log line: their texts may hold prompts and keys."""
    expected: bool
    """Whether nothing else has failed: no other exception was raised while this one was handled, or beside it."""


def library_error(error: BaseException) -> LibraryError | None:
    """What *error* means, with the exceptions in its causes, contexts and groups; `None` if nothing is known of it.

    An `OpenAISSEError` among them comes first, then the exception that is nearest to *error*. A context that
    `raise … from …` has replaced, or `from None` hidden, does not count.
    """
    exceptions = _exceptions(error)
    found = [(each, expected, meaning) for each, expected in exceptions if (meaning := _meaning(each)) is not None]
    if not found:
        return None
    nearest = min(found, key=lambda each: each[2].rank)
    result = nearest[2].error
    if result.status == 429 and result.retry_after is None and nearest[2].rank > 0:
        result.retry_after = _retry_after_behind(exceptions)  # a wrapper may leave it out
    classes = dict.fromkeys(f"{type(each).__module__}.{type(each).__qualname__}" for each, _ in exceptions[:4])
    summary = f"{', '.join(classes)} ({status_of(nearest[0]) or result.status}, {result.code})"
    return LibraryError(result, summary, expected=found[0][1])


def _exceptions(error: BaseException) -> list[tuple[BaseException, bool]]:
    """*error* and the exceptions behind it, nearest first, each with whether it is all that has failed."""
    found, seen = [(error, True)], {id(error)}
    for each, expected in found:  # which grows meanwhile
        for behind, alone in _behind(each):
            if id(behind) not in seen and len(found) < _MOST:
                seen.add(id(behind))
                found.append((behind, expected and alone))
    return found


def _behind(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    cause, context = member(error, "__cause__"), member(error, "__context__")
    if isinstance(cause, BaseException):
        yield cause, True
    if isinstance(context, BaseException) and not member(error, "__suppress_context__"):
        yield context, False
    grouped = member(error, "exceptions") if isinstance(error, BaseExceptionGroup) else ()
    members = grouped[:_MOST] if isinstance(grouped, tuple) else ()
    alone = len(members) == 1 or all(_meaning(each) is not None for each in members)
    for each in members:
        yield each, alone


def _retry_after_behind(exceptions: list[tuple[BaseException, bool]]) -> float | None:
    refusals = (each for each, _ in exceptions if status_of(each) == 429)
    return next((seconds for each in refusals if (seconds := retry_after_of(each)) is not None), None)


# One exception ------------------------------------------------------------------------------------------------------


class _Meaning(NamedTuple):
    rank: int
    """Of several exceptions, the one with the lowest counts."""
    error: OpenAISSEError


def _meaning(error: BaseException) -> _Meaning | None:
    try:
        return _read(error)
    except Exception:  # the objects of a library may raise anything: then nothing is known of its error
        return None


def _read(error: BaseException) -> _Meaning | None:
    if isinstance(error, OpenAISSEError):
        # A copy, because it would hold its own traceback through the exceptions that lead to it.
        return _Meaning(0, copy.copy(error))
    if (ours := _in_process(error)) is not None:
        return _Meaning(1, ours)
    found: OpenAISSEError | None
    if (found := _of_connection(error)) is not None:
        vague = "APIConnectionError" in class_names(error)  # also if the connection broke in the answer
    elif (found := _of_response(error)) is not None:
        # LiteLLM sets the status 500 on everything that it wraps.
        vague = isinstance(found, UpstreamRefused) and found.status >= 500 and body_of(error) is None
    elif "TimeoutError" in class_names(error):  # of `asyncio.timeout`, or of a database
        found, vague = ModelTimeout("The app's model took too long."), False
    else:
        return None
    found.should_retry = False  # the library has retried already
    return _Meaning(3 if vague else 2, found)


def _in_process(error: BaseException) -> OpenAISSEError | None:
    """An error of ours that this app's own route has sent to the library, with its members."""
    request = member(error, "request") or member(response_of(error), "request")
    extensions = member(request, "extensions")
    if not (isinstance(extensions, Mapping) and extensions.get(IN_PROCESS) is True):
        return None
    body = body_of(error)
    members = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(members, Mapping) or "user_message" not in members:
        return None
    cls = _by_code().get(str(members.get("code")), UpstreamRefused)
    status = status_of(error) or cls.status
    if issubclass(cls, UpstreamRefused) and status >= 500:  # the status of the upstream itself
        status = UpstreamError.status
    return ErrorValue(
        name=f"{cls.__module__}.{cls.__qualname__}",
        message=str(members.get("message")),
        status=status,
        type=str(members.get("type")),
        code=members.get("code"),
        param=members.get("param"),
        retry_after=retry_after_of(error),
        should_retry=False,
        user_message=str(members["user_message"]),
        passed_on={name: value for name, value in members.items() if name not in _OWN} or None,
    ).exception()


_OWN = frozenset({"message", "type", "param", "code", "user_message"})
"""The members that each error of ours has."""


@cache
def _by_code() -> dict[str, type[OpenAISSEError]]:
    """The classes of `errors` by their codes."""
    classes: dict[str, type[OpenAISSEError]] = {}
    waiting: list[type[OpenAISSEError]] = [OpenAISSEError]
    for cls in waiting:
        if cls.__module__ == OpenAISSEError.__module__:
            classes.setdefault(str(cls.code), cls)
            waiting += cls.__subclasses__()
    return classes


def _of_connection(error: BaseException) -> UpstreamError | None:
    """The error for a timeout, or for a connection that broke or was never made."""
    names = class_names(error)
    if names & _CONNECT_TIMEOUTS:
        return ConnectTimeout("The model's library could not reach its server in time.")
    if names & _TIMEOUTS or status_of(error) == 408:
        return UpstreamTimeout("The server of the model's library took too long.")
    if names & _BROKEN and not names & _UNREACHABLE:
        return UpstreamTruncated("The connection to the server of the model's library broke.")
    if names & (_UNREACHABLE | _CONNECTION):
        return UpstreamUnreachable("The model's library could not reach its server.")
    return None


# Names of classes of httpx, httpcore, requests, urllib3, aiohttp, botocore, openai, anthropic and others.
_CONNECT_TIMEOUTS = frozenset({"ConnectTimeout", "ConnectTimeoutError", "ConnectionTimeoutError"})
_TIMEOUTS = frozenset(
    {
        *("APITimeoutError", "TimeoutException", "Timeout", "ReadTimeout", "ReadTimeoutError", "ServerTimeoutError"),
        "DeadlineExceeded",
    }
)
_UNREACHABLE = frozenset(
    {"APIConnectionError", "ConnectError", "ClientConnectorError", "EndpointConnectionError", "ProxyError"}
)
_BROKEN = frozenset(
    {
        *("ReadError", "WriteError", "CloseError", "RemoteProtocolError"),
        *("ClientConnectionError", "ClientPayloadError", "ChunkedEncodingError", "IncompleteRead"),
    }
)
_CONNECTION = frozenset({"TransportError", "ConnectionError"})


def _of_response(error: BaseException) -> OpenAISSEError | None:
    """The error for a refusal, or for an error that the library's server has reported within a stream."""
    body = body_of(error)
    if (status := status_of(error)) is not None:
        found = _as_ours(refusal(status, headers_of(error), _encoded(body)))
        if found.retry_after is None:
            found.retry_after = retry_after_of(error)
        return found
    if body is None or not class_names(error) & _REPORTING:
        return None
    return _as_ours(failure_of(reported_error(body) or body if isinstance(body, Mapping) else body))


_REPORTING = frozenset({"APIError", "ResponseError"})
"""Classes whose exceptions have no status if a stream reports an error: of OpenAI, Anthropic, Ollama."""


def _as_ours(found: OpenAISSEError) -> OpenAISSEError:
    """*found*, or another error if the caller is not the reason for its status."""
    if not isinstance(found, UpstreamRefused) or found.status in _CALLERS:
        return found
    if found.status < 500:  # such as 404: the app has chosen the model that the library asks for
        return UpstreamError(f"The server of the model's library answered with status {found.status}.")
    found.status = UpstreamError.status
    return found


def _encoded(body: Any) -> bytes:
    if isinstance(body, str):
        return body.encode(errors="replace")
    try:
        return b"" if body is None else json.encode(body)
    except Exception:  # it is of classes of the library
        return b""
