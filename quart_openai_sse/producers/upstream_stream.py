"""An upstream's stream, relayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.producers.intake import Attempts, Intake
from quart_openai_sse.protocol.completion import Completion
from quart_openai_sse.upstreams import Upstream, cancels_at_once


class UpstreamStream:
    """Relays an upstream's stream: each chunk's bytes as they came."""

    def __init__(
        self,
        upstream: Upstream,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        attempts: Attempts,
        include_usage: bool,
        max_event: int,
    ) -> None:
        self.upstream = upstream.name
        self.cancels_at_once = cancels_at_once(upstream)
        self.completion = Completion(n=body.get("n") or 1)
        self._upstream = upstream
        self._principal = principal
        self._attempts = attempts
        self._body = streaming_body(body, include_usage=include_usage)
        self._max_event = max_event

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        sink = ChunkSink(
            self.completion,
            attempts=self._attempts,
            take=intake.append,
            room=intake.room,
            began=intake.began,
            max_event=self._max_event,
        )
        await self._upstream.run(self._body, sink, principal=self._principal)


def streaming_body(body: Mapping[str, Any], *, include_usage: bool) -> dict[str, Any]:
    """*body* as it is sent upstream: streamed, and with usage asked for."""
    streamed = {**body, "stream": True}
    if include_usage:
        streamed["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return streamed
