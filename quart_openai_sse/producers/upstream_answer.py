"""An upstream's whole answer, relayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, StreamTooLong, UpstreamGarbled
from quart_openai_sse.flow import ENOUGH, MORE, Flow
from quart_openai_sse.logs.entries import Entry, Kind
from quart_openai_sse.producers.access import UpstreamAccess
from quart_openai_sse.producers.intake import Intake
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.chunks import delta_of, finish_of
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.estimates import answer_tokens
from quart_openai_sse.protocol.parsing import error_in
from quart_openai_sse.protocol.upstream_errors import failure_of
from quart_openai_sse.protocol.upstream_events import UpstreamDecoder, find_error
from quart_openai_sse.upstreams import Headers

_LOOKED_AT = 1 << 20  # bytes of an answer that is not JSON


class UpstreamAnswer:
    """Relays an upstream's whole answer, unchanged, as the only entry of its stream; it is the `Sink` as well."""

    started = False
    fed = 0.0

    def __init__(self, access: UpstreamAccess, body: Mapping[str, Any]) -> None:
        self.upstream = access.upstream.name
        self.cancels_at_once = access.upstream.cancels_at_once
        self.completion = Completion(n=body.get("n") or 1)
        self.failed = access.attempts.failed
        self._access = access
        self._body = {member: value for member, value in body.items() if member != "stream_options"}
        self._data = bytearray()
        if access.meter is not None:
            access.attempts.cost = access.meter.follow(self.completion)

    async def run(self, intake: Intake) -> None:
        """See `Producer.run`."""
        await self._access.upstream.run(self._body, self, principal=self._access.principal)
        intake.append([Entry(bytes(self._data), intake.elapsed(), kind=Kind.ANSWER)])

    def begin(self, upstream: str) -> None:
        """See `Sink.begin`."""
        self.completion.restart()
        self._data.clear()
        self._access.attempts.begin(upstream)

    def head(self, status: int, headers: Headers, *, require_finish_reason: bool = True) -> None:
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
            raise _not_json(bytes(self._data)) from None
        if not isinstance(answer, dict):
            error = error_in(answer)
            raise failure_of(error) if error else UpstreamGarbled("The upstream's answer is not a JSON object.")
        self.completion.feed_answer(answer)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not all(map(_is_whole_choice, choices)):
            raise UpstreamGarbled("The upstream's answer has no choices with a message.")
        if (cost := self._access.attempts.cost) is not None:
            cost.answer = answer_tokens(answer)


def _not_json(body: bytes) -> OpenAISSEError:
    """The failure of an answer that is not JSON. A server that streams although `stream` is false may report an error.

    A stream that reports none is not put together: what was asked for is an answer that is passed on unchanged.
    """
    decoder = UpstreamDecoder(max_event_bytes=_LOOKED_AT)
    events = [*decoder.feed_data(body[:_LOOKED_AT]), *decoder.end()]
    for error in map(find_error, events):
        if error is not None:
            return failure_of(error)
    if events:
        return UpstreamGarbled("The upstream answered with an event stream instead of a JSON object.")
    return UpstreamGarbled("The upstream's answer is not JSON.")


def _is_whole_choice(choice: object) -> bool:
    """Whether it is a choice of an answer. A choice that Azure has filtered has a `finish_reason` instead of words."""
    if not isinstance(choice, dict):
        return False
    return isinstance(choice.get("message"), dict) or bool(delta_of(choice) or finish_of(choice.get("finish_reason")))
