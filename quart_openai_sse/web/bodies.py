"""The body of a request, read as it arrives and up to a limit."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

from quart import Request, current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from quart_openai_sse.errors import RequestTooLarge, RequestTooSlow
from quart_openai_sse.protocol.requests import json_size, parse_body
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.web.middleware import OWN_LIMIT, Received, Scope

_PATIENCE = 5.0  # seconds for which the client of a refused request may go on sending its body
_SMALL = 64 << 10  # bytes; further ones are taken only while there is memory


async def read_json(relay: Relay, *, limit: int | None = None) -> tuple[dict[str, Any], int]:
    """The JSON object in the body of the current request, and about the bytes of memory that it takes.

    Raises `UnsupportedMediaType`, `InvalidRequest`, `RequestTooLarge` beyond `max_body` or *limit* bytes, at once if
    the Content-Length says so, `RequestTooSlow`, and `MemoryFull`.
    """
    limit = relay.config.max_body if limit is None else min(limit, relay.config.max_body)
    memory = relay.memory
    body = bytearray()
    if (request.content_length or 0) > limit:
        raise RequestTooLarge(f"The body is larger than {limit} bytes.")
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


def with_own_limit(request_class: type[Request]) -> type[Request]:
    """A subclass of an app's *request_class* that does not apply Quart's limit to requests marked by `BodyLimit`.

    Quart refuses a body above its `MAX_CONTENT_LENGTH` while it creates the request or buffers the body: before a view
    can say more, and in the middle of what the client sends, which then gets no response.
    """

    class LimitedByView(request_class):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, max_content_length: int | None = None, **options: Any) -> None:
            scope = options["scope"] if "scope" in options else args[-1]  # the last one that may be positional
            limit = None if OWN_LIMIT in scope else max_content_length
            super().__init__(*args, max_content_length=limit, **options)

    LimitedByView.__name__, LimitedByView.__qualname__ = request_class.__name__, request_class.__qualname__
    return LimitedByView


async def discard_body(refused: Request, *, silence: float = _PATIENCE) -> bool:
    """Discards the rest of a request's body, for at most 5 seconds. Returns whether it is complete.

    Returns `False` early if nothing arrives for *silence* seconds.
    """
    scope = cast(Scope, refused.scope)
    counted = OWN_LIMIT in scope  # by `BodyLimit`, with the part that Quart is not told of
    received: Received = scope.get(OWN_LIMIT, Received())
    with suppress(HTTPException):
        for _ in range(round(_PATIENCE / silence)):
            before = received.size
            with suppress(TimeoutError):
                async with asyncio.timeout(silence):
                    async for data in refused.body:
                        received.size += 0 if counted else len(data)
                return True
            if received.size == before:
                break
    return False
