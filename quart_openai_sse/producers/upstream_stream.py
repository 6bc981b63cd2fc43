"""An upstream's stream, relayed."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from quart_openai_sse.producers.access import UpstreamAccess, streaming_body
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol.completeness import Completion


class UpstreamStream:
    """Relays an upstream's stream. The bytes of each chunk are unchanged."""

    def __init__(self, access: UpstreamAccess, body: Mapping[str, Any]) -> None:
        self.upstream = access.upstream.name
        self.cancels_at_once = access.upstream.cancels_at_once
        self._access = access
        self._body = streaming_body(body, access.config)
        self.completion = Completion(n=body.get("n") or 1)
        if access.meter is not None:
            access.attempts.cost = access.meter.follow(self.completion)

    def run(self, intake: Intake) -> Awaitable[None]:
        """See `Producer.run`."""
        access = self._access
        sink = ChunkSink(
            self.completion,
            attempts=access.attempts,
            take=intake.append,
            room=intake.room,
            began=intake.began,
            max_event=access.config.max_event,
        )
        return access.upstream.run(self._body, sink, principal=access.principal, commits=access.commits)
