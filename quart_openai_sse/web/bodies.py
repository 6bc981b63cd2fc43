"""The body of a request, read as it arrives and up to a limit."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from quart import current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from quart_openai_sse.errors import RequestTooLarge, RequestTooSlow
from quart_openai_sse.protocol.requests import json_size, parse_body
from quart_openai_sse.relay.relay import Relay

_SMALL = 64 << 10  # bytes; further ones are taken only while there is memory
_PATIENCE = 5.0  # seconds for which a client may go on sending a body that is too large


async def read_json(relay: Relay) -> tuple[dict[str, Any], int]:
    """The JSON object in the body of the current request, and about the bytes of memory that it takes.

    Raises `UnsupportedMediaType`, `InvalidRequest`, `RequestTooLarge` beyond `max_body`, `RequestTooSlow`, and
    `MemoryFull`.
    """
    limit, memory = relay.config.max_body, relay.memory
    body = bytearray()
    try:
        async with asyncio.timeout(current_app.config["BODY_TIMEOUT"]):
            async for data in request.body:
                body += data
                memory.bodies += len(data)
                if len(body) > limit:
                    raise RequestTooLarge(f"The body is larger than {limit} bytes.")
                if len(body) > _SMALL:
                    memory.check()
    except TimeoutError:
        raise RequestTooSlow("The body did not arrive in time.") from None
    except RequestEntityTooLarge:
        raise RequestTooLarge(f"The body is larger than {limit} bytes.") from None
    finally:
        memory.bodies -= len(body)
    data, headers = bytes(body), request.headers
    value = parse_body(data, content_type=headers.get("Content-Type", ""), upgrade=headers.get("Upgrade", ""))
    return value, json_size(data)


async def swallow_body() -> None:
    """Discards the rest of the current request's body for a while, so that the client can read the response."""
    with suppress(TimeoutError, HTTPException):
        async with asyncio.timeout(_PATIENCE):
            async for _ in request.body:
                pass
