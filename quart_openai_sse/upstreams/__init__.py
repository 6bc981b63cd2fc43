"""Upstreams: the servers that answer chat requests. The protocols are here, and one file for each implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.flow import Flow
from quart_openai_sse.principal import Principal

Headers = Mapping[str, str]


class Sink(Protocol):
    """Receives an upstream's answer as it arrives."""

    fed: float
    """When it was last fed, by `time.monotonic`; 0 before the first time. Deadlines depend on it."""

    @property
    def started(self) -> bool:
        """Whether there was any real output. Until then `first_output_timeout` applies, afterwards `gap_timeout`."""
        ...

    def begin(self, upstream: str) -> None:
        """A request is sent to the upstream of this name. The answer to an earlier one is discarded."""
        ...

    def failed(self, attempt: Attempt) -> None:
        """A request failed before any output. `begin` follows if there is another."""
        ...

    def head(self, status: int, headers: Headers, *, require_finish_reason: bool = True) -> None:
        """The status line and the headers have arrived. Only the body of a status from 200 to 299 is fed.

        Without *require_finish_reason*, `[DONE]` alone is the end of a stream: the upstream never sends a reason.
        """
        ...

    def feed(self, data: bytes) -> Flow:
        """A piece of the body has arrived. `PAUSE`: await `room` before the next; `ENOUGH`: call `finish`."""
        ...

    async def room(self) -> None:
        """Waits until there is room for more."""
        ...

    def finish(self) -> None:
        """The body has ended, or `feed` had enough of it.

        Raises the error that `feed` found, and `UpstreamTruncated` and its like if the answer is not complete.
        """
        ...


class Upstream(Protocol):
    """A server that answers Chat Completions requests.

    An upstream whose `run` ends at once when it is cancelled, and does not catch the cancellation, may set an attribute
    `cancels_at_once = True`; any other runs in a task of its own. One that is OpenAI's own API may set
    `is_openai = True`: requests that only OpenAI can answer must be in its API's ranges. One whose `name` callers must
    not see, because it is an internal address, sets `public_name`.
    """

    name: str
    """Its name in the record of a stream, in log lines, and as `owned_by` of models that it did not describe itself."""

    async def run(self, request: Mapping[str, Any], sink: Sink, *, principal: Principal) -> None:
        """Sends one request and feeds the answer to *sink*; returns when the answer has ended.

        Cancelling it closes the connection. Raises an `UpstreamError`, and the errors that *sink* raises.
        """
        ...

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        """The models it offers, as OpenAI's model objects."""
        ...

    async def aclose(self) -> None:
        """Closes its connections."""
        ...


def cancels_at_once(upstream: Upstream) -> bool:
    """Whether *upstream* ends at once when it is cancelled."""
    return bool(getattr(upstream, "cancels_at_once", False))


def is_openai(upstream: Upstream) -> bool:
    """Whether *upstream* is OpenAI's own API."""
    return bool(getattr(upstream, "is_openai", False))


def public_name(upstream: Upstream) -> str:
    """The name of *upstream* that callers are told."""
    return str(getattr(upstream, "public_name", upstream.name))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request upstream that failed before any output."""

    upstream: str
    """The name of the upstream that was asked."""
    error: OpenAISSEError
    wait: float | None
    """Seconds until the next attempt; `None` after the last one."""
