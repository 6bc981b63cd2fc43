"""An upstream's whole answer, relayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import StreamTooLong, UpstreamGarbled
from quart_openai_sse.flow import ENOUGH, MORE, Flow
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.upstream_errors import stream_error
from quart_openai_sse.upstreams import Headers


class UpstreamAnswer:
    """Relays an upstream's whole answer, unchanged, as the only entry of its stream; it is the `Sink` as well."""

    started = False
    fed = 0.0

    def __init__(self, access: UpstreamAccess, body: Mapping[str, Any]) -> None:
        self.upstream = access.upstream.name
        self.cancels_at_once = access.upstream.cancels_at_once
        self.completion = Completion()
        self.failed = access.attempts.failed
        self._access = access
        self._body = {member: value for member, value in body.items() if member != "stream_options"}
        self._data = bytearray()

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        await self._access.upstream.run(self._body, self, principal=self._access.principal)
        intake.append([Entry(bytes(self._data), intake.elapsed(), kind=Kind.ANSWER)])

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self.completion.restart()
        self._data.clear()
        self._access.attempts.begin(upstream)

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink.head`."""

    def feed(self, data: bytes) -> Flow:
        """See `Sink.feed`."""
        self._data += data
        self._access.hold(len(data))
        return MORE if len(self._data) <= self._access.config.max_bytes else ENOUGH

    async def room(self) -> None:
        """See `Sink.room`."""

    def finish(self) -> None:
        """See `Sink.finish`."""
        if len(self._data) > self._access.config.max_bytes:
            raise StreamTooLong("The upstream's answer is too large.")
        try:
            answer = json.decode(self._data)
        except ValueError:
            raise UpstreamGarbled("The upstream's answer is not JSON.") from None
        if not isinstance(answer, dict):
            raise UpstreamGarbled("The upstream's answer is not a JSON object.")
        if (failure := stream_error(answer)) is not None:
            raise failure
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not all(map(_is_whole_choice, choices)):
            raise UpstreamGarbled("The upstream's answer has no choices with a message.")
        as_chunk = {**answer, "choices": [{**choice, "delta": choice["message"]} for choice in choices]}
        self.completion.feed(json.encode(as_chunk))


def _is_whole_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)
