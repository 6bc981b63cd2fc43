"""The access of one stream to the upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quart_openai_sse.config import Config
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.costs import TokenMeter
from quart_openai_sse.producers.intake import Attempts
from quart_openai_sse.upstreams.several import Upstreams


@dataclass(frozen=True, slots=True)
class UpstreamAccess:
    """The upstream, the principal on whose behalf it is asked, the record of the attempts, and the limits."""

    upstream: Upstreams
    principal: Principal
    attempts: Attempts
    config: Config
    hold: Callable[[int], object]
    """Counts bytes that are held until the stream's end."""
    meter: TokenMeter | None = None
    """Charges the stream's tokens, if they are limited."""
    committed: float | None = None
    """When the response that waits for the first output begins without it, by `time.monotonic`; `None`: none waits."""

    def commits(self) -> float | None:
        """*committed*, or `None` after the first output: then the response has begun."""
        return self.committed if self.attempts.record.time_to_first_output is None else None


def streaming_body(body: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """*body* as it is sent upstream for a stream: with `stream`, and with usage unless that is switched off."""
    streamed = {**body, "stream": True}
    if config.include_usage:
        streamed["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return streamed
