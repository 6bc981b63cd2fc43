"""Explains errors for `check` and `chat`: the cause of each, and what may help."""

from __future__ import annotations

import difflib
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from quart_openai_sse.cli.target import Target
from quart_openai_sse.errors import (
    ConnectTimeout,
    EventTooLong,
    FirstOutputTimeout,
    GapTimeout,
    OpenAISSEError,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamQuota,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
    UpstreamUnreadable,
)
from quart_openai_sse.upstreams import Headers


class Problem(NamedTuple):
    """An error in words."""

    summary: str
    advice: str


@dataclass(frozen=True)
class RequestInfo:
    """The request that failed, as far as it is known."""

    target: Target
    model: str = ""
    models: Sequence[str] = ()
    """The models that the upstream lists."""
    headers: Headers = field(default_factory=dict)
    """The headers of the response; empty without a response."""

    @property
    def url(self) -> str:
        """The upstream's address."""
        return self.target.base_url.value

    def key(self, name: str) -> str:
        """The configuration key of the option *name*."""
        return f"{self.target.prefix}{name}"


def explain(error: Exception, request: RequestInfo) -> Problem:
    """The summary and the advice for *error*, which *request* raised."""
    for kind, explanation in _EXPLANATIONS:
        if isinstance(error, kind):
            return explanation(error, request)
    # For example an API key function, or an HTTP client of the app's own.
    return Problem(f"The app's own code raised {type(error).__name__}: {error}", "No request was sent to the upstream.")


def _unreachable(error: Exception, request: RequestInfo) -> Problem:
    where = urlsplit(request.url)
    place = where.netloc
    causes = list(_causes(error))
    if _any(causes, ssl.SSLCertVerificationError):
        return Problem(
            f"TLS: the certificate of {place} is not accepted ({_tls(causes)}).",
            "If it is signed by a private authority, set SSL_CERT_FILE to that authority's certificate file and "
            f"{request.key('TRUST_ENV')}=true, or give the extension an HTTP client that trusts it (client=…).",
        )
    if _any(causes, ssl.SSLError):
        return Problem(
            f"TLS: the handshake with {place} failed ({_tls(causes)}).",
            f"If that port does not use TLS, the address is http://{place}{where.path}.",
        )
    if _any(causes, socket.gaierror):
        return Problem(
            f"The host name {where.hostname} could not be resolved.",
            f"Check its spelling; if only a proxy can resolve it, set {request.key('TRUST_ENV')}=true.",
        )
    if _any(causes, ConnectionRefusedError):
        return Problem(
            f"No server is listening at {place}.",
            "Start the server, or check host and port. In a container, 127.0.0.1 is the container itself.",
        )
    return Problem(
        f"{place} closed the connection before it responded.",
        "It may accept only https://, or have crashed: check its log."
        if where.scheme == "http"
        else "It may have crashed, or a proxy may have closed the connection: check their logs.",
    )


def _unreadable(_error: Exception, request: RequestInfo) -> Problem:
    where = urlsplit(request.url)
    return Problem(
        f"The response of {where.netloc} is not valid HTTP/1.1.",
        "It may accept only https://, or be a server of another kind."
        if where.scheme == "http"
        else "The server, or a proxy before it, sends a faulty head or faulty chunks.",
    )


def _connect_timeout(_error: Exception, request: RequestInfo) -> Problem:
    return Problem(
        f"No connection to {urlsplit(request.url).netloc} within {request.target.config.connect_timeout:g} s.",
        "A firewall may drop the packets, or the host may be down. If the connection needs a proxy (HTTPS_PROXY), set "
        f"{request.key('TRUST_ENV')}=true.",
    )


def _credentials(error: Exception, request: RequestInfo) -> Problem:
    key = request.target.key
    if not key:
        return Problem(
            "The upstream requires a key, but none was sent.",
            f"Set OPENAI_API_KEY or {request.key('API_KEY')}, or name another variable with --api-key-env.",
        )
    status = "403" if "403" in str(error) else "401"
    header = request.target.config.api_key_header
    return Problem(
        f"The upstream refused the key ({status}; from {key.origin}, sent in {header}).{_said(error)}",
        "Check that the key belongs to this server, has not expired and may use the model. "
        f"Azure expects it in another header: {request.key('API_KEY_HEADER')}=api-key.",
    )


def _quota(error: UpstreamQuota, _request: RequestInfo) -> Problem:
    return Problem(
        f"The account's credit or quota at the upstream is used up.{_said(error)}",
        "It is a matter of billing: check the account of this key.",
    )


def _said(error: Exception) -> str:
    """What the upstream said, to be added to a sentence. Callers are not told it, but this is the operator."""
    withheld = error.withheld if isinstance(error, UpstreamError) else ()
    return f" The upstream said: {', '.join(withheld)}" if withheld else ""


def _refused(error: UpstreamRefused, request: RequestInfo) -> Problem:
    message = f"{error.message} (status {error.status})"
    details = f"{error.code} {error.param} {error.message}".lower()
    if error.status in (404, 405):
        return _not_found(error, request, message)
    if "stream_options" in details or "include_usage" in details:
        return Problem(
            f"The upstream does not accept stream_options: {message}", f"Set {request.key('INCLUDE_USAGE')}=false."
        )
    if error.status == 429:
        return Problem(
            f"The upstream accepts no more requests at the moment: {message}",
            "A rate limit ends by itself.",
        )
    if error.status >= 500:
        return Problem(f"The upstream failed: {message}", "The upstream is at fault: check its log or status page.")
    return Problem(f"The upstream did not accept the request: {message}", "The message comes from the upstream.")


def _not_found(error: UpstreamRefused, request: RequestInfo, message: str) -> Problem:
    named = re.search(rf"(?<!\w){re.escape(request.model)}(?!\w)", error.message)
    if request.model and (error.code == "model_not_found" or named):
        similar = difflib.get_close_matches(request.model, request.models, n=3, cutoff=0.5) or list(request.models[:5])
        advice = f"Some of its models: {', '.join(similar)}." if similar else "Name another model with --model."
        return Problem(f"The upstream has no model {request.model!r}: {message}", advice)
    base = request.url.rstrip("/")
    path = urlsplit(base).path
    if path.endswith("/chat/completions"):
        advice = f"Use the address of the API without the route: {base.removesuffix('/chat/completions')}"
    elif not re.search(r"/v\d", path):
        advice = f"The address may lack /v1 at its end. Try {base}/v1"
    else:
        advice = "Check the path: /models and /chat/completions must be directly below it."
    return Problem(f"OpenAI's routes do not exist at {request.url}: {message}", advice)


def _redirect_or_other(error: OpenAISSEError, request: RequestInfo) -> Problem:
    if location := request.headers.get("location"):
        return Problem(f"{error.message} It points to {location}", "Redirects are not followed: use the final address.")
    return Problem(error.message, "Check that the address is that of an OpenAI-compatible server.")


def _garbled(error: Exception, request: RequestInfo) -> Problem:
    if "compressed" in str(error):
        return Problem(
            f"The stream is compressed ({request.headers.get('content-encoding')}), although identity was requested.",
            "Compression delays events. Switch it off for text/event-stream, in the server or in the proxy before it.",
        )
    if "document" in str(error):
        kind = request.headers.get("content-type", "").partition(";")[0] or "without a Content-Type"
        return Problem(
            f"The response is a document ({kind}) instead of a stream.",
            "The server ignores stream: true, or the address belongs to something else: a login page, a gateway."
            if kind == "application/json"
            else "The address belongs to something else: a login page, a gateway, a website.",
        )
    return Problem(
        f"The response is not a chat completions stream: {error}",
        "Check that the address is that of an OpenAI-compatible server.",
    )


def _event_too_long(_error: Exception, request: RequestInfo) -> Problem:
    return Problem(
        f"The upstream sent an event of more than {request.target.config.max_event} bytes.",
        f"Models that draw send a whole picture in one event. Raise {request.key('MAX_EVENT')}.",
    )


def _truncated(_error: Exception, _request: RequestInfo) -> Problem:
    return Problem(
        "The stream ended before its finish_reason.",
        "The server crashed or was stopped, or a proxy cut the stream (a time or size limit): check their logs.",
    )


def _failed(error: Exception, _request: RequestInfo) -> Problem:
    return Problem(f"The upstream reported an error within its stream: {error}", "The message comes from the upstream.")


def _first_output_timeout(_error: Exception, request: RequestInfo) -> Problem:
    return Problem(
        f"No output within {request.target.config.first_output_timeout:g} s.",
        "A model that is still loading, or reasons without sending its reasoning, needs a higher "
        f"{request.key('FIRST_OUTPUT_TIMEOUT')}. A proxy that buffers the stream has the same effect.",
    )


def _gap_timeout(_error: Exception, request: RequestInfo) -> Problem:
    return Problem(
        f"The upstream sent nothing for more than {request.target.config.gap_timeout:g} s in the middle of the stream.",
        f"The server may hang. If it only needs more time, raise {request.key('GAP_TIMEOUT')}.",
    )


def _total_timeout(_error: Exception, request: RequestInfo) -> Problem:
    return Problem(
        f"The answer took more than {request.target.config.total_timeout:g} s.",
        f"Request a shorter answer, or raise {request.key('TOTAL_TIMEOUT')}.",
    )


_EXPLANATIONS: Sequence[tuple[type[Exception], Callable[[Any, RequestInfo], Problem]]] = (  # the first match is used
    (ConnectTimeout, _connect_timeout),
    (FirstOutputTimeout, _first_output_timeout),
    (GapTimeout, _gap_timeout),
    (TotalTimeout, _total_timeout),
    (UpstreamUnreachable, _unreachable),
    (UpstreamCredentials, _credentials),
    (UpstreamQuota, _quota),
    (UpstreamFailed, _failed),
    (UpstreamRefused, _refused),
    (UpstreamUnreadable, _unreadable),
    (UpstreamGarbled, _garbled),
    (EventTooLong, _event_too_long),
    (UpstreamTruncated, _truncated),
    (OpenAISSEError, _redirect_or_other),
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):  # one exception for each address that was tried
            for each in cause.exceptions:
                yield from _causes(each)
        cause = cause.__cause__ or cause.__context__


def _any(causes: Sequence[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _tls(causes: Sequence[BaseException]) -> str:
    text = next(str(cause) for cause in reversed(causes) if isinstance(cause, ssl.SSLError))
    return re.sub(r"\[[^\]]*\] | \(_ssl\.c:\d+\)", "", text)
