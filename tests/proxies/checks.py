"""The checks of one way through a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from quart_openai_sse.testing import serve_app
from tests.matrix.page import Page
from tests.matrix.servers import free_port
from tests.proxies.app import MODEL, Answer, create_app
from tests.proxies.report import Seen
from tests.proxies.ways import Way

PATIENCE = 20.0
"""Seconds, for what comes as soon as it can: what has not come then does not come by itself."""
LOOK = 2.0
"""Seconds, for what does not come by itself in some rows, so that it is waited for in vain there."""
EVENTS = 10
"""A proxy that has not noticed that a client has left when these are written does not notice it."""
T = TypeVar("T")
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Site:
    """The proxy, with the app behind it."""

    client: httpx.AsyncClient
    answers: asyncio.Queue[Answer]
    app: AsyncExitStack
    """When it is closed, the app is gone: its connections are cut first, as by a kill."""
    address: str
    app_address: str

    async def begun(self) -> Answer:
        """The next answer that the model begins."""
        return await _soon(self.answers.get())

    def origin(self) -> dict[str, str]:
        """The header that a page of the site sends."""
        return {"Origin": f"http://{self.address}"}


async def check(way: Way, page: Page, work: Path) -> Seen:
    """What is seen of one way."""
    async with _served(way, page, work) as site:
        seen = {
            "same_origin": await _status(site, {**site.origin(), "Sec-Fetch-Site": "same-origin"}),
            "origin_only": await _origin_only(site, way.host),
            "foreign": await _foreign(site),
        }
        events, end = await _stream(site)
        left, left_before = await _left(site), await _left_before(site)
        killed, down = await _killed(site)
        return Seen(**seen, events=events, end=end, left=left, left_before=left_before, killed=killed, down=down)


@asynccontextmanager
async def _served(way: Way, page: Page, work: Path) -> AsyncIterator[Site]:
    app, answers = create_app()
    port = free_port()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(AsyncExitStack())
        app_address = await behind.enter_async_context(serve_app(app))
        app_port = int(app_address.rpartition(":")[2])
        await stack.enter_async_context(way.start(page, port=port, app_port=app_port, work=work))
        address = f"127.0.0.1:{port}"
        client = httpx.AsyncClient(base_url=f"http://{address}", timeout=PATIENCE, trust_env=False)
        await stack.enter_async_context(client)
        (await client.get("/login")).raise_for_status()
        yield Site(client, answers, behind, address, app_address)


# A page that uses a cookie ------------------------------------------------------------------------------------------


async def _post(site: Site, headers: dict[str, str]) -> httpx.Response:
    """A stream is started, and ended if it was."""
    response = await site.client.post("/v1/streams", json=BODY, headers=headers)
    if response.status_code == 201:
        (await site.begun()).texts.put_nowait("")
    return response


async def _status(site: Site, headers: dict[str, str]) -> str:
    return str((await _post(site, headers)).status_code)


async def _origin_only(site: Site, host: str) -> str:
    response = await _post(site, site.origin())
    if response.status_code != 403:
        return str(response.status_code)
    message = response.json()["error"]["message"]
    host = site.app_address if host == "app" else host
    named = (f"Origin is '{site.origin()['Origin']}'", f"Host is '{host}'", "a proxy has changed Host")
    return "403, says why" if all(part in message for part in named) else f"403: {message}"


async def _foreign(site: Site) -> str:
    origins: list[dict[str, str]] = [{"Origin": "https://evil.example"}, {"Origin": "null"}]
    browsers: list[dict[str, str]] = [{}, {"Sec-Fetch-Site": "cross-site"}]
    return ", ".join(sorted({await _status(site, {**each, **browser}) for each in origins for browser in browsers}))


# A stream -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _streaming(site: Site) -> AsyncIterator[tuple[Answer, AsyncIterator[str]]]:
    """A stream whose first text is written, and its lines; the client leaves at the end."""
    headers = {**site.origin(), "Sec-Fetch-Site": "same-origin"}
    request = site.client.build_request("POST", "/v1/chat/completions", json={**BODY, "stream": True}, headers=headers)
    sending = asyncio.ensure_future(site.client.send(request, stream=True))
    answer = await site.begun()
    answer.texts.put_nowait("first")
    response = await sending
    try:
        yield answer, response.aiter_lines()
    finally:
        await response.aclose()


async def _first(lines: AsyncIterator[str]) -> None:
    """Reads up to the first text. Raises `TimeoutError` if it does not come."""
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            if '"first"' in line:
                return


async def _stream(site: Site) -> tuple[str, str]:
    async with _streaming(site) as (answer, lines):
        try:
            await _first(lines)
        except (TimeoutError, httpx.ReadTimeout):
            return "held", "unknown"
        answer.texts.put_nowait(" last")
        answer.texts.put_nowait("")
        rest = [line async for line in lines if line]
        whole = '" last"' in "".join(rest) and '"finish_reason":"stop"' in "".join(rest).replace(" ", "")
        return "at once", "complete" if whole and rest[-1] == "data: [DONE]" else "incomplete"


async def _left(site: Site) -> str:
    async with _streaming(site) as (answer, lines):
        await _first(lines)
    if await _comes(answer.over):
        return "at once"
    for _ in range(EVENTS):
        answer.texts.put_nowait("more")
        if await _comes(answer.over):
            return "next events"
    answer.texts.put_nowait("")
    return "never"


async def _left_before(site: Site) -> str:
    headers = {**site.origin(), "Sec-Fetch-Site": "same-origin"}
    asking = asyncio.ensure_future(site.client.post("/v1/chat/completions", json=BODY, headers=headers))
    answer = await site.begun()
    asking.cancel()
    await asyncio.wait({asking})
    noticed = await _comes(answer.over)
    answer.texts.put_nowait("")
    await _soon(answer.over.wait())
    return "at once" if noticed else "never"


async def _killed(site: Site) -> tuple[str, str]:
    async with _streaming(site) as (_, lines):
        await _first(lines)
        await site.app.aclose()
        try:
            async with asyncio.timeout(PATIENCE):
                rest = [line async for line in lines if line]
        except httpx.RemoteProtocolError:
            killed = "incomplete"
        except (TimeoutError, httpx.ReadTimeout):
            killed = "open"
        else:
            killed = "complete" if not rest else f"complete: {rest[-1]}"
    return killed, await _status(site, site.origin())


async def _soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def _comes(event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(LOOK):
            return await event.wait()
    except TimeoutError:
        return False
