"""Responses that do not stream: a whole answer, an error."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from quart import Request, Response, g, has_request_context, request

from quart_openai_sse.errors import OpenAISSEError, StreamTooLong
from quart_openai_sse.formats import json_refusal
from quart_openai_sse.formats.registry import Wire
from quart_openai_sse.logs.entries import LOST, End, Kind
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.running import StreamHandle
from quart_openai_sse.web.bodies import discard_body
from quart_openai_sse.web.language import translator

logger = logging.getLogger("quart_openai_sse")

_WIRE = "quart_openai_sse_wire"
"""The name in `g` of the format that `refuse_in` was given."""

_SILENCE = 0.5  # seconds after which a client that sends nothing is taken to wait for the response


async def read_answer(relay: Relay, handle: StreamHandle) -> bytes:
    """A whole stream as one `chat.completion` in JSON; an answer that the upstream did not stream, unchanged.

    Raises the error of a stream that failed, and `StreamStopped`.
    """
    whole, assembly = await _read(relay, handle)
    if whole is not None:
        return whole
    if (message := assembly.message()) is None:
        raise StreamTooLong("The answer is too large.")
    return json.encode(message)


async def read_message(relay: Relay, handle: StreamHandle) -> dict[str, Any]:
    """The assistant's message of a stream's first choice, and the details of it, such as citations.

    Raises what `read_answer` raises.
    """
    whole, assembly = await _read(relay, handle)
    if whole is not None:
        assembly.add(whole, whole=True)
    if (message := assembly.first_message()) is None:
        raise StreamTooLong("The answer is too large.")
    return {**assembly.details, **message}


async def _read(relay: Relay, handle: StreamHandle) -> tuple[bytes | None, Assembly]:
    """An answer that the upstream did not stream, if it is one, and otherwise what the chunks add up to."""
    reader = handle.reader or await relay.read(handle, heartbeat=False)
    assembly = Assembly(n=reader.about.n, limit=relay.config.max_bytes)
    whole: bytes | None = None
    end: End | None = None
    held = 0
    try:
        async for batch in reader:
            for entry in batch.entries:
                held += len(entry.data)
                relay.memory.unread += len(entry.data)
                if entry.kind is Kind.ANSWER:
                    whole = entry.data
                elif entry.kind is not Kind.EVENT:
                    assembly.add(entry.data, whole=entry.whole)
            end = batch.end
    finally:
        relay.memory.unread -= held
        await relay.readers.leave(reader)
    if (error := (end or LOST).exception()) is not None:
        raise error
    return whole, assembly


def refuse_in(wire: Wire) -> None:
    """Writes the errors of the current request in the format *wire* from now on."""
    setattr(g, _WIRE, wire)


async def respond_to_error(error: OpenAISSEError) -> Response:
    """The response to an error that a view of the app raised, for `Quart.register_error_handler`.

    If the body is still arriving, it is discarded first: unread data makes a server reset the connection, and a client
    that sends all of its body before it reads would get no response. A client that sends nothing more gets the response
    at once, and the body is discarded after it.
    """
    response = error_response(error)
    # A websocket has no body.
    if has_request_context() and not await discard_body(request, silence=_SILENCE):
        data = await response.get_data(as_text=False)
        refused = request._get_current_object()
        response.response = response.iterable_body_class(_before_the_end(data, refused))
    return response


async def _before_the_end(data: bytes, refused: Request) -> AsyncIterator[bytes]:
    """The whole response. The server is told that it ends when the request has ended as well."""
    yield data
    await discard_body(refused)


def error_response(error: OpenAISSEError) -> Response:
    """An error in the format that the request's route speaks, by default as OpenAI's API reports it."""
    body, content_type = _refusal(error)
    response = Response(body, status=error.status, content_type=content_type)
    response.headers.update(error.headers())
    response.vary.add("Accept-Language")
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _refusal(error: OpenAISSEError) -> tuple[bytes, str]:
    wire: Wire | None = g.get(_WIRE)
    if wire is not None:
        try:
            body, content_type = wire.without_stream.refusal(error)
            # A header is one line, and in Latin-1.
            return bytes(body), "".join(content_type.encode("latin-1").decode("latin-1").splitlines())
        except Exception:  # in a format of the app
            logger.exception("a format could not write an error")
    return json_refusal(error, translator())
