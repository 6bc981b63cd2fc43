"""The body of a request, read as it arrives and up to a limit."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from quart import current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from quart_openai_sse.errors import RequestTooLarge, RequestTooSlow
from quart_openai_sse.protocol.requests import parse_body

_PATIENCE = 5.0  # seconds for which a client may go on sending a body that is too large


async def read_json(limit: int) -> dict[str, Any]:
    """The JSON object in the body of the current request.

    Raises `UnsupportedMediaType`, `InvalidRequest`, `RequestTooLarge` beyond *limit* bytes, and `RequestTooSlow`.
    """
    data, headers = await read_body(limit), request.headers
    return parse_body(data, content_type=headers.get("Content-Type", ""), upgrade=headers.get("Upgrade", ""))


async def read_body(limit: int) -> bytes:
    """The body of the current request. Raises `RequestTooLarge` beyond *limit* bytes, and `RequestTooSlow`."""
    body = bytearray()
    try:
        async with asyncio.timeout(current_app.config["BODY_TIMEOUT"]):
            async for data in request.body:
                body += data
                if len(body) > limit:
                    raise RequestTooLarge(f"The body is larger than {limit} bytes.")
    except TimeoutError:
        raise RequestTooSlow("The body did not arrive in time.") from None
    except RequestEntityTooLarge:
        raise RequestTooLarge(f"The body is larger than {limit} bytes.") from None
    return bytes(body)


async def swallow_body() -> None:
    """Discards the rest of the current request's body for a while, so that the client can read the response."""
    with suppress(TimeoutError, HTTPException):
        async with asyncio.timeout(_PATIENCE):
            async for _ in request.body:
                pass
