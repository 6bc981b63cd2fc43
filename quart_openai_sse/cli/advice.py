"""What an error means and what to do about it, in words: for `check` and `chat`."""

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
    FirstOutputTimeout,
    GapTimeout,
    OpenAISSEError,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.upstreams import Headers


class Problem(NamedTuple):
    """What is wrong, and what may help."""

    what: str
    advice: str


@dataclass(frozen=True)
class Asked:
    """What was asked when the error came."""

    target: Target
    model: str = ""
    models: Sequence[str] = ()
    """The upstream's, as far as they are known."""
    headers: Headers = field(default_factory=dict)
    """Those of the answer, if there was one."""

    @property
    def url(self) -> str:
        """The upstream's address."""
        return self.target.base_url.value

    def key(self, name: str) -> str:
        """The configuration's key for that option."""
        return f"{self.target.prefix}{name}"


def explain(error: Exception, asked: Asked) -> Problem:
    """*error* in words."""
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words(error, asked)
    # A coroutine function that gives keys, an HTTP client of the app's own.
    return Problem(f"The app's own code raised {type(error).__name__}: {error}", "The upstream was not asked.")


def _unreachable(error: Exception, asked: Asked) -> Problem:
    where = urlsplit(asked.url)
    place = where.netloc
    causes = list(_causes(error))
    if _any(causes, ssl.SSLCertVerificationError):
        return Problem(
            f"TLS: the certificate of {place} is not accepted ({_tls(causes)}).",
            "If it is signed by an authority of your own, name its file in SSL_CERT_FILE and set "
            f"{asked.key('TRUST_ENV')}=true, or give the extension an HTTP client that knows it (client=…).",
        )
    if _any(causes, ssl.SSLError):
        return Problem(
            f"TLS: {place} does not speak it as https:// needs it ({_tls(causes)}).",
            f"If there is no TLS at that port, the address is http://{place}{where.path}.",
        )
    if _any(causes, socket.gaierror):
        return Problem(
            f"The name {where.hostname} is not known.",
            f"Check the address for a slip; if only a proxy knows such names, set {asked.key('TRUST_ENV')}=true.",
        )
    if _any(causes, ConnectionRefusedError):
        return Problem(
            f"Nothing listens at {place}.",
            "Start the server, or check host and port. In a container, 127.0.0.1 is the container itself.",
        )
    return Problem(
        f"{place} broke off before it answered.",
        "It may speak https:// only, or have crashed: its own log knows."
        if where.scheme == "http"
        else "It may have crashed, or something between has hung up: its own log knows.",
    )


def _connect_timeout(_error: Exception, asked: Asked) -> Problem:
    return Problem(
        f"No connection to {urlsplit(asked.url).netloc} within {asked.target.config.connect_timeout:g} s.",
        "A firewall may swallow it, or the host be down. If the way out is a proxy (HTTPS_PROXY), set "
        f"{asked.key('TRUST_ENV')}=true.",
    )


def _credentials(error: Exception, asked: Asked) -> Problem:
    key = asked.target.key
    if not key:
        return Problem(
            "The upstream wants a key, and none was sent.",
            f"Set OPENAI_API_KEY or {asked.key('API_KEY')}, or name another variable with --api-key-env.",
        )
    status = "403" if "403" in str(error) else "401"
    header = asked.target.config.api_key_header
    return Problem(
        f"The upstream refused the key ({status}; from {key.origin}, sent in {header}).",
        "Check that it is this server's, not expired, and allowed to use the model. "
        f"Azure wants it in another header: {asked.key('API_KEY_HEADER')}=api-key.",
    )


def _refused(error: UpstreamRefused, asked: Asked) -> Problem:
    said = f"{error.message} (status {error.status})"
    told = f"{error.code} {error.param} {error.message}".lower()
    if error.status in (404, 405):
        return _not_found(error, asked, said)
    if "stream_options" in told or "include_usage" in told:
        return Problem(f"The upstream does not take stream_options: {said}", f"Set {asked.key('INCLUDE_USAGE')}=false.")
    if error.status == 429:
        return Problem(
            f"The upstream takes no more requests at the moment: {said}",
            "A rate limit passes; insufficient_quota is a matter of billing.",
        )
    if error.status >= 500:
        return Problem(f"The upstream failed: {said}", "The fault is on its side: its own log or status page knows.")
    return Problem(f"The upstream did not accept the request: {said}", "The message is the upstream's own.")


def _not_found(error: UpstreamRefused, asked: Asked, said: str) -> Problem:
    named = re.search(rf"(?<!\w){re.escape(asked.model)}(?!\w)", error.message)
    if asked.model and (error.code == "model_not_found" or named):
        near = difflib.get_close_matches(asked.model, asked.models, n=3, cutoff=0.5) or list(asked.models[:5])
        advice = f"It has: {', '.join(near)}." if near else "Name another with --model."
        return Problem(f"The upstream has no model {asked.model!r}: {said}", advice)
    base = asked.url.rstrip("/")
    path = urlsplit(base).path
    if path.endswith("/chat/completions"):
        advice = f"The address is that of the API, not of one route: {base.removesuffix('/chat/completions')}"
    elif not re.search(r"/v\d", path):
        advice = f"Is a /v1 missing at its end? Try {base}/v1"
    else:
        advice = "Check the path: /models and /chat/completions must be right below it."
    return Problem(f"OpenAI's routes are not at {asked.url}: {said}", advice)


def _redirect_or_other(error: OpenAISSEError, asked: Asked) -> Problem:
    if location := asked.headers.get("location"):
        return Problem(
            f"{error.message} It points to {location}", "Redirects are not followed: give the final address."
        )
    return Problem(error.message, "Is it an OpenAI-compatible server that answers there?")


def _garbled(error: Exception, asked: Asked) -> Problem:
    kind = asked.headers.get("content-type", "").partition(";")[0]
    encoding = asked.headers.get("content-encoding", "identity")
    if encoding != "identity":
        return Problem(
            f"The stream came compressed ({encoding}), though identity was asked for.",
            "Compressed events wait for each other. Switch compression off for text/event-stream, in the server or "
            "the proxy before it.",
        )
    if kind in ("application/json", "text/html"):
        return Problem(
            f"A document came ({kind}) instead of a stream.",
            "The server ignores stream: true, or something else answers at this address: a login page, a gateway."
            if kind == "application/json"
            else "Something else answers at this address: a login page, a gateway, a site.",
        )
    return Problem(f"What came is not a chat completions stream: {error}", "Is it an OpenAI-compatible server?")


def _truncated(_error: Exception, _asked: Asked) -> Problem:
    return Problem(
        "The stream broke off before its finish_reason.",
        "The server crashed or was stopped, or a proxy cut the stream (a time or size limit): their logs know.",
    )


def _failed(error: Exception, _asked: Asked) -> Problem:
    return Problem(f"The upstream reported an error within its stream: {error}", "The message is the upstream's own.")


def _first_output_timeout(_error: Exception, asked: Asked) -> Problem:
    return Problem(
        f"No output within {asked.target.config.first_output_timeout:g} s.",
        "A model that is being loaded, or thinks for long without saying so, needs a higher "
        f"{asked.key('FIRST_OUTPUT_TIMEOUT')}. A proxy that collects the stream looks the same.",
    )


def _gap_timeout(_error: Exception, asked: Asked) -> Problem:
    return Problem(
        f"The stream was silent for more than {asked.target.config.gap_timeout:g} s.",
        f"The server hangs, or needs a higher {asked.key('GAP_TIMEOUT')}.",
    )


def _total_timeout(_error: Exception, asked: Asked) -> Problem:
    return Problem(
        f"The answer took more than {asked.target.config.total_timeout:g} s.",
        f"Ask for less, or raise {asked.key('TOTAL_TIMEOUT')}.",
    )


_WORDS: Sequence[tuple[type[Exception], Callable[[Any, Asked], Problem]]] = (  # the first that fits
    (ConnectTimeout, _connect_timeout),
    (FirstOutputTimeout, _first_output_timeout),
    (GapTimeout, _gap_timeout),
    (TotalTimeout, _total_timeout),
    (UpstreamUnreachable, _unreachable),
    (UpstreamCredentials, _credentials),
    (UpstreamFailed, _failed),
    (UpstreamRefused, _refused),
    (UpstreamGarbled, _garbled),
    (UpstreamTruncated, _truncated),
    (OpenAISSEError, _redirect_or_other),
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):  # one for each address that was tried
            for each in cause.exceptions:
                yield from _causes(each)
        cause = cause.__cause__ or cause.__context__


def _any(causes: Sequence[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _tls(causes: Sequence[BaseException]) -> str:
    text = next(str(cause) for cause in reversed(causes) if isinstance(cause, ssl.SSLError))
    return re.sub(r"\[[^\]]*\] | \(_ssl\.c:\d+\)", "", text)
