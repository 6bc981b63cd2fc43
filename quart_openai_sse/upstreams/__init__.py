"""What answers a chat request: the protocols, and one file for each way to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.principal import Principal

Headers = Mapping[str, str]


class Sink(Protocol):
    """Where an upstream's answer goes, as it arrives."""

    fed: float
    """When it was fed last, by `time.monotonic`; 0: not yet. Deadlines look at it."""

    @property
    def started(self) -> bool:
        """Whether there was any real output yet: until then the first-output deadline runs, later the gap's."""
        ...

    def begin(self, upstream: str) -> None:
        """A request goes out, to the upstream of this name. What an earlier one brought is forgotten."""
        ...

    def failed(self, attempt: Attempt) -> None:
        """A request failed before any output. If there is to be another, `begin` follows."""
        ...

    def head(self, status: int, headers: Headers) -> None:
        """The status line and headers have come. The body of an answer other than 200 is not fed."""
        ...

    def feed(self, data: bytes) -> bool:
        """A piece of the body has come. `False`: pause, and ask `room`."""
        ...

    async def room(self) -> bool:
        """Waits until more may come. `False`: nothing more is wanted. Raises what `feed` found wrong."""
        ...

    def finish(self) -> None:
        """The body has ended. Raises what it lacked."""
        ...


class Upstream(Protocol):
    """Whatever answers Chat Completions requests.

    One that is over at once when it is cancelled, and lets the cancellation through, may say so by an attribute
    `cancels_at_once`; any other gets a task of its own.
    """

    name: str
    """What the record calls it."""

    async def run(self, request: Mapping[str, Any], sink: Sink, *, principal: Principal) -> None:
        """Sends one request and feeds the answer to *sink*; returns when it is over.

        Cancelling it closes the connection. Raises an `UpstreamError`, and what *sink* raises.
        """
        ...

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        """The models it offers, as OpenAI's model objects."""
        ...

    async def aclose(self) -> None:
        """Closes its connections."""
        ...


def cancels_at_once(upstream: Upstream) -> bool:
    """Whether an upstream says that it is over at once when it is cancelled."""
    return bool(getattr(upstream, "cancels_at_once", False))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request upstream that failed before any output."""

    upstream: str
    """The name of the upstream that was asked."""
    error: OpenAISSEError
    wait: float | None
    """Seconds until the next attempt; `None` if there is none."""
