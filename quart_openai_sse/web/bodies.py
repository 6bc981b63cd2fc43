"""A request's body: read as it arrives, and bounded."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quart import current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from quart_openai_sse.errors import RequestTooLarge, RequestTooSlow

_PATIENCE = 5.0  # seconds a client may go on sending a body that is too large


async def read_body(limit: int) -> bytes:
    """The request's body, counted as it arrives."""
    too_large = RequestTooLarge(f"The body is larger than {limit} bytes.")
    body = bytearray()
    try:
        async with asyncio.timeout(current_app.config["BODY_TIMEOUT"]):
            async for data in request.body:
                body += data
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise RequestTooSlow("The body did not arrive in time.") from None
    except RequestEntityTooLarge:
        raise too_large from None
    return bytes(body)


async def swallow_body() -> None:
    """Lets the client finish sending, for a while."""
    with suppress(TimeoutError, HTTPException):
        async with asyncio.timeout(_PATIENCE):
            async for _ in request.body:
                pass
