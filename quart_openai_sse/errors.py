"""Every error that the extension raises or answers: its HTTP status, OpenAI `type` and `code`, and a user's sentence.

The file is longer than others because it is one catalogue: the page "Errors" of the documentation, the OpenAPI document
and the translations are made from it, and a reader finds any error in one place. Almost all of it is data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

Side = Literal["caller", "server", "app", "upstream"]

Translate = Callable[[str], str]
"""Returns the translation of an English sentence, or the sentence itself if it has no translation."""


def english(sentence: str) -> str:
    """The sentence itself."""
    return sentence


class OpenAISSEError(Exception):
    """The base class of all errors. *message* is for developers; `user_message` is for users."""

    status: int = 500
    """The HTTP status of the response, if the error occurs before the first byte."""
    type: str = "server_error"
    """OpenAI's `error.type`."""
    code: str | None = "internal_error"
    """OpenAI's `error.code`, for programs; it does not change between versions."""
    side: ClassVar[Side] = "server"
    """Whose side failed."""
    param: str | None = None
    """The member or header of the request that is invalid."""
    retry_after: float | None = None
    """Seconds until a retry can succeed; sent as `Retry-After`, rounded up."""
    should_retry: bool | None = None
    """Sent as `x-should-retry`, which OpenAI's SDKs obey; `None`: the SDK decides by the status."""
    user_message: str = "Something went wrong on our side. Please try again."
    """A sentence that can be shown to a user, in English; `web/languages/` has its translations."""
    passed_on: Mapping[str, Any] | None = None
    """Further members of the error in its response, such as Groq's `failed_generation`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _classes[_name(cls)] = cls

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or self.user_message)
        self.param = param if param is not None else self.param
        self.code = code if code is not None else self.code
        self.retry_after = retry_after if retry_after is not None else self.retry_after

    @property
    def message(self) -> str:
        """What went wrong, for developers."""
        return str(self)

    def body(self, translate: Translate = english) -> dict[str, Any]:
        """The JSON body of the error: OpenAI's members, and `user_message` as *translate* returns it."""
        members = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**(self.passed_on or {}), **members, "user_message": translate(self.user_message)}}

    def headers(self) -> dict[str, str]:
        """The response headers that tell a client whether and when to retry."""
        headers = {}
        if self.retry_after is not None and math.isfinite(self.retry_after):
            headers["Retry-After"] = str(math.ceil(max(0, self.retry_after)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers

    def __reduce__(self) -> tuple[Any, ...]:
        # Without `__init__`, whose arguments differ from class to class.
        return _create, (type(self), self.args, self.__dict__)


@dataclass(frozen=True, slots=True)
class ErrorValue:
    """An error as a plain value, which can be stored, sent and compared.

    It holds no exception: no traceback, and so nothing of the request that failed.
    """

    name: str
    """The class, as `module.name`."""
    message: str
    status: int
    type: str
    code: str | None
    param: str | None
    retry_after: float | None
    should_retry: bool | None
    user_message: str
    passed_on: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, error: OpenAISSEError) -> ErrorValue:
        """The value of *error*."""
        return cls(_name(type(error)), *(getattr(error, name) for name in _VALUES))

    def exception(self) -> OpenAISSEError:
        """A new exception. Its class is `OpenAISSEError` if this process does not know the class; its members stay.

        Attributes that a class of the app adds are lost.
        """
        cls = _classes.get(self.name, OpenAISSEError)
        members = {name: getattr(self, name) for name in _VALUES}
        message = members.pop("message")
        own = {name: value for name, value in members.items() if value != getattr(cls, name)}
        return _create(cls, (message,), own)


_VALUES = tuple(field.name for field in fields(ErrorValue))[1:]
_classes: WeakValueDictionary[str, type[OpenAISSEError]] = WeakValueDictionary()
"""Every subclass of `OpenAISSEError`, by its name."""


def _create(cls: type[OpenAISSEError], args: tuple[Any, ...], members: dict[str, Any]) -> OpenAISSEError:
    # Not `cls.__new__`: a class of the app may have one with other arguments.
    error = Exception.__new__(cls, *args)
    error.args = args
    error.__dict__.update(members)
    return error


def _name(cls: type[OpenAISSEError]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class ConfigurationError(OpenAISSEError):
    """The extension's configuration is invalid. Raised while the app is set up, never sent as a response."""

    code = "configuration_error"


# Errors of the caller -----------------------------------------------------------------------------------------------


class RequestError(OpenAISSEError):
    """The request is invalid. Sending it again unchanged fails again."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    side = "caller"
    user_message = "This request could not be understood."


class InvalidRequest(RequestError):
    """A member of the body is missing, of the wrong type or out of range; `param` names it."""


class InvalidLastEventID(RequestError):
    """The last event ID is not the ID of an event of this stream."""

    code = "invalid_last_event_id"
    param = "Last-Event-ID"
    user_message = "This answer can't be resumed from this point. Please reload the page."


class AuthenticationRequired(RequestError):
    """The request has no credentials, or the auth hook does not accept them."""

    status = 401
    type = "authentication_error"  # LiteLLM takes an invalid_request_error for a BadRequestError, whatever its status
    code = "invalid_api_key"
    user_message = "Please log in."


class PermissionDenied(RequestError):
    """The caller is authenticated but does not have the right to do this."""

    status = 403
    code = "permission_denied"
    user_message = "You are not allowed to do this."


class OriginDenied(PermissionDenied):
    """A page of another origin sent the request with a user's cookie or password (cross-site request forgery)."""

    code = "origin_denied"


class RouteNotFound(RequestError):
    """The URL prefix has no route with this path."""

    status = 404
    code = "not_found"
    user_message = "This address does not exist."


class MethodNotAllowed(RequestError):
    """The route does not accept the request's method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(RequestError):
    """The model does not exist, or the caller may not use it."""

    status = 404
    code = "model_not_found"
    param = "model"
    user_message = "This model is not available."


class StreamNotFound(RequestError):
    """The stream does not exist, or belongs to another principal."""

    status = 404
    code = "stream_not_found"
    user_message = "This answer no longer exists."


class StreamExpired(RequestError):
    """The stream existed, but its requested events are no longer kept."""

    status = 410
    code = "stream_expired"
    user_message = "This answer is no longer available. Please ask again."


class RequestTooSlow(RequestError):
    """The body of the request did not arrive in time."""

    status = 408
    code = "request_timeout"
    user_message = "The connection is too slow. Please try again."


class RequestTooLarge(RequestError):
    """The body of the request is larger than `max_body`."""

    status = 413
    code = "request_too_large"
    user_message = "This message is too long."


class UnsupportedMediaType(RequestError):
    """The content type of the request is not `application/json`."""

    status = 415
    code = "unsupported_media_type"


class KeyReused(RequestError):
    """The `Idempotency-Key` was used before with a different body."""

    status = 422
    code = "idempotency_key_reused"
    param = "Idempotency-Key"


class TooManyStreams(RequestError):
    """The caller, or all callers together, have reached the limit of running streams."""

    status = 429
    type = "rate_limit_exceeded"
    code = "too_many_streams"
    retry_after = 5
    user_message = "There are too many answers being written at the moment. Please try again in a few seconds."


class TooManyStarts(TooManyStreams):
    """The caller starts streams faster than allowed."""

    code = "too_many_starts"
    user_message = "You are asking too fast. Please wait a moment."


class TokensSpent(RequestError):
    """The caller's tokens are spent, or its running streams may use the rest. A start is refused, or a stream fails."""

    status = 429
    type = "insufficient_quota"
    code = "tokens_spent"
    should_retry = False
    user_message = "Your allowance for AI answers is used up for now. Please come back later."


class NestedTooDeep(RequestError):
    """Models ask each other, or themselves, through `ai.transport()`, and too many such requests are nested."""

    code = "nested_too_deep"


class TooManyReaders(RequestError):
    """The stream, or its caller's streams together, have reached the limit of readers."""

    status = 429
    type = "rate_limit_exceeded"
    code = "too_many_readers"
    retry_after = 5
    user_message = "This answer is open in too many places. Please close some of them."


class StreamStopped(OpenAISSEError):
    """The stream was stopped; its readers get this error. A transform raises it with a reason to stop its stream."""

    status = 409
    type = "stream_stopped"
    code = "stopped"
    side = "caller"
    should_retry = False
    user_message = "The answer was stopped."


# Errors of this server and its app ----------------------------------------------------------------------------------


class AuthUnavailable(OpenAISSEError):
    """The caller could not be authenticated because another server failed (login server, token issuer's keys)."""

    status = 503
    code = "auth_unavailable"
    retry_after = 5
    user_message = "We can't check who you are at the moment. Please try again in a few seconds."


class Draining(OpenAISSEError):
    """The server is shutting down and accepts no new streams."""

    status = 503
    type = "server_is_overloaded"
    code = "draining"
    retry_after = 2
    user_message = "The server is restarting. Please try again in a few seconds."


class MemoryFull(OpenAISSEError):
    """The process holds `max_memory` bytes of requests and streams, and accepts no new streams."""

    status = 503
    type = "server_is_overloaded"
    code = "memory_full"
    retry_after = 5
    user_message = "The server is busy. Please try again in a few seconds."


class LogUnavailable(OpenAISSEError):
    """The stream log could not be reached."""

    status = 503
    type = "server_is_overloaded"
    code = "log_unavailable"
    retry_after = 2
    user_message = "The server has a problem at the moment. Please try again in a few seconds."


class LimitsUnavailable(OpenAISSEError):
    """The storage that counts starts could not be reached. Nothing was started."""

    status = 503
    type = "server_is_overloaded"
    code = "limits_unavailable"
    retry_after = 2
    user_message = "The server has a problem at the moment. Please try again in a few seconds."


class ProducerLost(OpenAISSEError):
    """The process that produced the stream has ended, or could not reach the stream log for too long."""

    status = 503
    code = "producer_lost"
    retry_after = 1
    user_message = "The answer was interrupted on our side. Please ask again."


class ServerShutdown(OpenAISSEError):
    """The server shut down before the stream was complete."""

    status = 503
    code = "server_shutdown"
    retry_after = 2
    user_message = "The server was restarted before the answer was complete. Please ask again."


class StartAbandoned(OpenAISSEError):
    """The request that was starting the stream ended first. Another request that waited for the stream can retry."""

    status = 503
    code = "start_abandoned"
    retry_after = 1
    should_retry = True


class StreamTooLong(OpenAISSEError):
    """The stream exceeded its limit of entries, bytes or seconds."""

    code = "stream_too_long"
    user_message = "The answer was too long and has been cut off."


class ModelFailed(OpenAISSEError):
    """The app's own model, or one of its hooks, raised an exception or produced an invalid chunk."""

    code = "model_failed"
    side = "app"


class HookTimeout(OpenAISSEError):
    """A `prepare` hook of the app took longer than `prepare_timeout`. Nothing was started."""

    status = 503
    code = "hook_timeout"
    side = "app"
    retry_after = 5
    user_message = "Our server took too long. Please try again in a few seconds."


class ModelTimeout(OpenAISSEError):
    """The app's own model took too long. Each deadline has its own subclass."""

    status = 504
    code = "model_timeout"
    side = "app"
    user_message = "The answer took too long. Please try again."


class ModelFirstOutputTimeout(ModelTimeout):
    """The app's model yielded no output and no event within `model_first_output_timeout`."""

    code = "model_first_output_timeout"
    user_message = "The answer did not begin in time. Please try again."


class ModelGapTimeout(ModelTimeout):
    """The app's model yielded nothing for longer than `model_gap_timeout` in the middle of the stream."""

    code = "model_gap_timeout"
    user_message = "The answer stopped in the middle. Please try again."


class ModelTotalTimeout(ModelTimeout):
    """The app's model took longer than `model_total_timeout` for its whole answer."""

    code = "model_total_timeout"
    user_message = "The whole answer took too long. Please try again, perhaps with a shorter question."


# Errors of the upstream ---------------------------------------------------------------------------------------------


class UpstreamError(OpenAISSEError):
    """The upstream failed."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    side = "upstream"
    user_message = "The AI service had a problem. Please try again."
    withheld: tuple[str, ...] = ()
    """The pieces of the upstream's message that callers are not shown, for the log; empty once they are logged."""


class UpstreamUnreachable(UpstreamError):
    """The upstream could not be reached, or closed the connection before it responded."""

    code = "upstream_unreachable"
    user_message = "The AI service can't be reached at the moment. Please try again later."


class UpstreamTruncated(UpstreamError):
    """The upstream stopped before the stream was complete (`finish_reason`, then `[DONE]`)."""

    code = "upstream_truncated"
    user_message = "The AI service stopped before the answer was complete."


class UpstreamGarbled(UpstreamError):
    """The upstream's response is not a valid Chat Completions response."""

    code = "upstream_garbled"


class UpstreamUnreadable(UpstreamGarbled):
    """The upstream responded with something that is not valid HTTP/1.1: a head or a chunk that cannot be read."""

    code = "upstream_unreadable"
    should_retry = False  # the upstream has been asked and may have charged for it; its next response would be alike


class EventTooLong(UpstreamError):
    """One event of the upstream's stream is larger than `max_event`."""

    code = "event_too_large"
    should_retry = False  # the same answer would be too large again, and is paid for again
    user_message = "The AI service sent more at once than this site accepts."


class UpstreamCredentials(UpstreamError):
    """The upstream refused the server's API key. The status is 502, not 401, since the caller cannot correct it."""

    code = "upstream_credentials"
    should_retry = False
    user_message = "The AI service is not set up correctly. Please tell the operator of this site."


class UpstreamQuota(UpstreamError):
    """The credit or the quota of the server's account at the upstream is used up. The caller cannot correct it."""

    code = "upstream_quota"
    should_retry = False
    user_message = "The AI service is not available on this site at the moment. Please tell the operator of this site."


class UpstreamRefused(UpstreamError):
    """The upstream responded with an error. The error keeps the upstream's *status*, type, code and param."""

    code = "upstream_refused"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,  # noqa: A002 (OpenAI's name)
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after=retry_after)
        self.status = status
        self.type = type or ("invalid_request_error" if status < 500 else self.type)
        self.should_retry = should_retry
        if status == 429:
            self.type = type or "rate_limit_exceeded"
            self.user_message = "The AI service is busy. Please try again in a moment."
        elif status < 500:
            self.user_message = "The AI service did not accept this request."


class UpstreamFailed(UpstreamRefused):
    """The upstream reported an error within its stream."""

    code = "upstream_failed"


class UpstreamTimeout(UpstreamError):
    """The upstream took too long. Each phase has its own subclass."""

    status = 504
    code = "upstream_timeout"
    user_message = "The AI service took too long to answer. Please try again."


class ConnectTimeout(UpstreamTimeout):
    """The connection was not established within `connect_timeout`."""

    code = "connect_timeout"
    user_message = "The AI service could not be reached in time. Please try again later."


class FirstOutputTimeout(UpstreamTimeout):
    """The first output did not arrive within `first_output_timeout`; empty deltas do not count as output."""

    code = "first_output_timeout"
    user_message = "The AI service did not begin to answer in time. Please try again."


class GapTimeout(UpstreamTimeout):
    """The upstream sent nothing for longer than `gap_timeout` in the middle of the stream."""

    code = "gap_timeout"
    user_message = "The AI service stopped responding in the middle of the answer."


class TotalTimeout(UpstreamTimeout):
    """The whole answer took longer than `total_timeout`."""

    code = "total_timeout"
    user_message = "The whole answer took too long. Please try again, perhaps with a shorter question."
