"""Every error of ours: its HTTP status, OpenAI type and code, whose side failed, and what a person is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

Side = Literal["caller", "server", "app", "upstream"]

Translate = Callable[[str], str]
"""Returns an English sentence in another language, or the sentence itself if there is no translation."""


def english(sentence: str) -> str:
    """The sentence itself."""
    return sentence


class OpenAISSEError(Exception):
    """The root of the tree. *message* is for developers; `user_message` is a sentence for a person."""

    status: int = 500
    """The HTTP status it is answered with, while no byte has been sent."""
    type: str = "server_error"
    """OpenAI's `error.type`."""
    code: str | None = "internal_error"
    """OpenAI's `error.code`: stable, for programs."""
    side: ClassVar[Side] = "server"
    """Whose side failed."""
    param: str | None = None
    """The member of the request that is wrong."""
    retry_after: float | None = None
    """Seconds after which a retry makes sense; sent as `Retry-After`."""
    should_retry: bool | None = None
    """Sent as `x-should-retry`, which OpenAI's SDKs obey; `None` leaves the decision to the status."""
    user_message: str = "Something went wrong on our side. Please try again."

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
        """OpenAI's error object, with `user_message` beside OpenAI's members, in the language of *translate*."""
        members = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**members, "user_message": translate(self.user_message)}}

    def headers(self) -> dict[str, str]:
        """The response headers that say whether and when to retry."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(max(0, self.retry_after)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class ConfigurationError(OpenAISSEError):
    """The extension is set up wrongly; raised by `init_app`, never answered."""

    code = "configuration_error"


# What the caller did ------------------------------------------------------------------------------------------------


class RequestError(OpenAISSEError):
    """The request is at fault; sending it again unchanged will not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    side = "caller"
    user_message = "This request could not be understood."


class InvalidRequest(RequestError):
    """A member of the body is missing, of the wrong type or out of range; `param` names it."""


class InvalidLastEventID(RequestError):
    """The last event ID is not a place in this stream."""

    code = "invalid_last_event_id"
    param = "Last-Event-ID"
    user_message = "This answer can't be continued from there. Please reload the page."


class AuthenticationRequired(RequestError):
    """The auth hook knows nobody by these credentials."""

    status = 401
    code = "invalid_api_key"
    user_message = "Please log in."


class PermissionDenied(RequestError):
    """The caller is known but may not do this."""

    status = 403
    code = "permission_denied"
    user_message = "You are not allowed to do this."


class OriginDenied(PermissionDenied):
    """A page of another origin used a visitor's cookie (cross-site request forgery)."""

    code = "origin_denied"


class RouteNotFound(RequestError):
    """There is no such route below the prefix."""

    status = 404
    code = "not_found"
    user_message = "There is nothing here."


class MethodNotAllowed(RequestError):
    """The route exists, its method is another."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(RequestError):
    """The model does not exist, or not for this caller."""

    status = 404
    code = "model_not_found"
    param = "model"
    user_message = "This model is not available."


class StreamNotFound(RequestError):
    """There is no such stream, or it is not the caller's."""

    status = 404
    code = "stream_not_found"
    user_message = "This answer no longer exists."


class StreamExpired(RequestError):
    """The stream was there, and what is asked for is no longer kept."""

    status = 410
    code = "stream_expired"
    user_message = "This answer is no longer kept. Please ask again."


class RequestTooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"
    user_message = "The connection is too slow. Please try again."


class RequestTooLarge(RequestError):
    """The body is over the limit."""

    status = 413
    code = "request_too_large"
    user_message = "This message is too long."


class UnsupportedMediaType(RequestError):
    """The body is not `application/json`."""

    status = 415
    code = "unsupported_media_type"


class KeyReused(RequestError):
    """The `Idempotency-Key` was used before with another body."""

    status = 422
    code = "idempotency_key_reused"
    param = "Idempotency-Key"


class TooManyStreams(RequestError):
    """The limit of running streams is reached, for this caller or in all."""

    status = 429
    type = "rate_limit_exceeded"
    code = "too_many_streams"
    retry_after = 5
    user_message = "There are too many answers being written at the moment. Please try again in a few seconds."


class TooManyStarts(TooManyStreams):
    """Streams are started faster than is allowed."""

    code = "too_many_starts"
    user_message = "You are asking too fast. Please wait a moment."


class TokensSpent(RequestError):
    """The caller's tokens of this window are spent. At the start it is refused; in the middle the stream fails."""

    status = 429
    type = "insufficient_quota"
    code = "tokens_spent"
    should_retry = False
    user_message = "Your allowance for AI answers is used up for now. Please come back later."


class StreamStopped(OpenAISSEError):
    """Somebody stopped the stream; an answer to those who were waiting for it."""

    status = 409
    type = "stream_stopped"
    code = "stopped"
    side = "caller"
    should_retry = False
    user_message = "The answer was stopped."


# What this server or the app around it did --------------------------------------------------------------------------


class AuthUnavailable(OpenAISSEError):
    """Who calls can't be found out, because what knows it does not answer. Nobody is let in, or logged out."""

    status = 503
    code = "auth_unavailable"
    retry_after = 5
    user_message = "We can't check who you are at the moment. Please try again in a few seconds."


class Draining(OpenAISSEError):
    """The server is shutting down and starts nothing new."""

    status = 503
    type = "server_is_overloaded"
    code = "draining"
    retry_after = 2
    user_message = "The server is restarting. Please try again in a few seconds."


class ServerShutdown(OpenAISSEError):
    """The server stopped before the stream was complete."""

    status = 503
    code = "server_shutdown"
    retry_after = 2
    user_message = "The server was restarted before the answer was complete. Please ask again."


class StartAbandoned(OpenAISSEError):
    """The request that was starting this stream broke off before it ran; who waited for it may start it anew."""

    status = 503
    code = "start_abandoned"
    retry_after = 1
    should_retry = True


class StreamTooLong(OpenAISSEError):
    """The stream outgrew its limit of entries, bytes or seconds."""

    code = "stream_too_long"
    user_message = "The answer grew too long and was ended."


class ModelFailed(OpenAISSEError):
    """The app's own model, or a hook that stands in its way, raised or gave something that is not a chunk."""

    code = "model_failed"
    side = "app"


# What the upstream did ----------------------------------------------------------------------------------------------


class UpstreamError(OpenAISSEError):
    """The upstream is at fault."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    side = "upstream"
    user_message = "The AI service had a problem. Please try again."


class UpstreamUnreachable(UpstreamError):
    """No connection, or one that broke before an answer."""

    code = "upstream_unreachable"
    user_message = "The AI service can't be reached at the moment. Please try again later."


class UpstreamTruncated(UpstreamError):
    """The upstream stopped before the stream was complete (`finish_reason`, then `[DONE]`)."""

    code = "upstream_truncated"
    user_message = "The AI service broke off before the answer was complete."


class UpstreamGarbled(UpstreamError):
    """The upstream sent what is not a Chat Completions stream."""

    code = "upstream_garbled"


class UpstreamCredentials(UpstreamError):
    """The upstream refused *our* key; not the visitor's to mend, so never a 401."""

    code = "upstream_credentials"
    should_retry = False
    user_message = "The AI service is not set up correctly. Please tell the operator of this site."


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error: with its own *status*, type, code and param."""

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
    """The upstream was too slow; each phase has its own subclass."""

    status = 504
    code = "upstream_timeout"
    user_message = "The AI service took too long to answer. Please try again."


class ConnectTimeout(UpstreamTimeout):
    """No connection within `connect_timeout`."""

    code = "connect_timeout"
    user_message = "The AI service could not be reached in time. Please try again later."


class FirstOutputTimeout(UpstreamTimeout):
    """No output within `first_output_timeout`; empty deltas do not count as output."""

    code = "first_output_timeout"
    user_message = "The AI service did not begin to answer in time. Please try again."


class GapTimeout(UpstreamTimeout):
    """Silence for longer than `gap_timeout` in the middle of the stream."""

    code = "gap_timeout"
    user_message = "The AI service went silent in the middle of the answer."


class TotalTimeout(UpstreamTimeout):
    """The whole answer took longer than `total_timeout`."""

    code = "total_timeout"
    user_message = "The answer took too long as a whole. Please try again, perhaps with a shorter question."
