"""What the browser tests need: the example app behind a proxy that hangs up, pages that are listened to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, Locator, Page, expect
from quart import Quart

from example_app import create_app
from example_app.accounts import DEMO_ACCOUNTS
from quart_openai_sse.simulator import Simulator, answer, pieces, serve_simulator
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, serve_app

expect.set_options(timeout=30_000)

PATIENCE = 30.0  # seconds, for what comes as soon as it can

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
"""What Chromium is started with."""

NewSite = Callable[..., Any]
NewPage = Callable[..., Any]


def asked(question: str, model: str = "sim-fast") -> dict[str, Any]:
    """The request that a question becomes."""
    return {"model": model, "messages": [{"role": "user", "content": question}]}


LONG = answer(asked("Tell me more.", "sim-length-240"))


# The app ------------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """The example app, with a simulator of its own behind it and a proxy in front."""

    app: Quart
    simulator: Simulator
    proxy: Proxy
    overrides: ExitStack

    @property
    def url(self) -> str:
        """Where a page finds it: at the proxy."""
        return self.proxy.url

    def gated(self, text: str, gates: int) -> Gated:
        """From now on the app's upstream answers *text*, in parts with *gates* between them."""
        upstream = Gated(text, gates)
        self.overrides.enter_context(self.app.extensions["ai"].override(self.app, upstream=upstream))
        return upstream

    def says(self, text: str) -> None:
        """From now on the app's upstream answers *text*, at once."""
        upstream = ScriptedUpstream([chunk(text), finish()])
        self.overrides.enter_context(self.app.extensions["ai"].override(self.app, upstream=upstream))


@asynccontextmanager
async def serve_example(*, tokens_per_second: float = 0, **settings: Any) -> AsyncIterator[Site]:
    """Serves it; *settings* are keys of its configuration."""
    async with AsyncExitStack() as stack:
        # SQLite's thread may still write its journal there, for a request that was cut off.
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        simulator = await stack.enter_async_context(
            serve_simulator(first_token_delay=0, tokens_per_second=tokens_per_second)
        )
        own = {"DATABASE": f"{folder}/chat.db", "SIMULATED": True, "OPENAI_SSE_BASE_URL": simulator.base_url}
        # Soon again: EventSource waits for as long as the server says.
        app = create_app(**{"OPENAI_SSE_RETRY": 1, **own, **settings})
        address = await stack.enter_async_context(serve_app(app))
        proxy = await stack.enter_async_context(serve_proxy(address))
        yield Site(app, simulator, proxy, stack.enter_context(ExitStack()))


MARKDOWN = """\
# Streams

Some **bold**, _slanted_ and `code`, in two
lines, with [a link](https://example.org/page?a=1&b=2) and https://example.org/plain.

3. one
4. two
   - deeper

- [x] done

| what | means |
|---|:-:|
| a *delta* | more |

> quoted

```python
if 1 < 2:
    print("<b>&amp;")
```
"""


class Gated(ScriptedUpstream):
    """Writes one text in several parts, each when the gate before it is opened."""

    def __init__(self, text: str, gates: int) -> None:
        tokens = pieces(text)
        size = len(tokens) // (gates + 1)
        starts = [size * number for number in range(gates + 1)]
        parts = [tokens[start:end] for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True)]
        self.text = text
        self.so_far = ["".join(tokens[: start + len(part)]) for start, part in zip(starts, parts, strict=True)]
        """The text before the first gate, before the second …, at the end."""
        self.gates = [asyncio.Event() for _ in range(gates)]
        waits = [gate.wait for gate in self.gates]
        script: list[Any] = [chunk("", role="assistant")]
        for wait, part in zip([None, *waits], parts, strict=True):
            script += [wait] if wait else []
            script += [chunk(token) for token in part]
        super().__init__([*script, finish()])


# The proxy ----------------------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A TCP proxy that hangs up in the middle of a stream."""

    url: str = ""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next responses that read a stream are cut, one number each."""
    reads: list[str] = field(default_factory=list)
    """The heads of the requests that read a stream."""
    reading: set[_Connection] = field(default_factory=set)
    """The connections whose last request reads a stream."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a client closes such a connection."""

    def hang_up(self) -> None:
        """Cuts them, now."""
        for connection in list(self.reading):
            connection.cut()


@asynccontextmanager
async def serve_proxy(address: str) -> AsyncIterator[Proxy]:
    """A proxy in front of *address*, on a socket of the running event loop."""
    proxy = Proxy()
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await _Connection(proxy, reader, writer).run(address)
        connections.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)


class _Connection:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, reader: StreamReader, writer: StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._left: int | None = None
        """How many bytes may still pass downwards."""

    async def run(self, address: str) -> None:
        """Passes bytes until one side closes."""
        host, _, port = address.partition(":")
        # Both sides are closed without a wait: the proxy may end, and cancel this, at any time, also while it closes.
        with contextlib.closing(self._writer):
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(writer):
                await self._pass_on(reader, writer)
        for each in (writer, self._writer):
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        ways = {asyncio.ensure_future(self._up(writer)), asyncio.ensure_future(self._down(reader))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._proxy.reading.discard(self)
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    async def _up(self, writer: StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 16):
                self._request(data)
                writer.write(data)
                await writer.drain()
        if self in self._proxy.reading:
            self._proxy.reading.discard(self)
            self._proxy.left.set()

    def _request(self, data: bytes) -> None:
        """A browser sends a request when the response before it is over, and its head in one piece."""
        self._left = None
        self._proxy.reading.discard(self)
        if data.startswith(b"GET /v1/streams/"):
            self._proxy.reading.add(self)
            self._proxy.reads.append(data.decode())
            self._left = self._proxy.cuts.pop(0) if self._proxy.cuts else None

    async def _down(self, reader: StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self._writer.write(data[: self._left])
                await self._writer.drain()
                if self._left is not None and self._left <= len(data):
                    self.cut()
                    return
                self._left = None if self._left is None else self._left - len(data)

    def cut(self) -> None:
        """Now and then by a reset, which also takes away what the browser has not read yet."""
        if self._left and self._left % 4 == 0:
            connection = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


# The page -----------------------------------------------------------------------------------------------------------

SHORT_WAITS = """{
    const wait = globalThis.setTimeout;
    globalThis.setTimeout = (done, ms = 0, ...rest) => wait(done, ms > 10_000 ? ms : ms / 100, ...rest);
}"""
"""The waits between two attempts are a hundredth of what they are to people; what guards against silence stays."""


@asynccontextmanager
async def listened_page(browser: Browser, *, failing: bool = False, **options: Any) -> AsyncIterator[Page]:
    """A page without a past. What its console complained of fails the test: an error, a violation of the policy.

    *failing*: except for requests that failed, which the test is about. *options* are those of its context.
    """
    context = await browser.new_context(**options)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    await context.add_init_script(SHORT_WAITS)
    complaints: list[str] = []
    context.on("console", lambda line: complaints.append(f"{line.type}: {line.text} ({line.location['url']})"))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    try:
        yield await context.new_page()
    finally:
        await context.close()
    harmless = ("log:", "info:", "debug:", *(["error: Failed to load resource:"] if failing else []))
    serious = [line for line in complaints if not line.startswith(harmless)]
    assert serious == [], serious


async def log_in(page: Page, site: Site, path: str = "/", *, name: str = "ada") -> None:
    """Logs in as the form does, and opens *path*."""
    form = {"username": name, "password": DEMO_ACCOUNTS[name]}
    response = await page.context.request.post(f"{site.url}/login", form=form, headers={"Origin": site.url})
    assert response.url == f"{site.url}/"
    await page.goto(site.url + path)


async def log_in_by_form(page: Page, site: Site, *, name: str = "ada") -> None:
    """Logs in as a person does."""
    await page.goto(f"{site.url}/login")
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill(DEMO_ACCOUNTS[name])
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{site.url}/")


class Chat:
    """The chat page, as a person sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answers = page.locator("[data-role=assistant]")
        self.questions = page.locator("[data-role=user]")
        self.asked = self.questions.locator(".text")
        self.answer = self.answers.last
        self.note = self.answer.locator(".note")
        self.status = page.get_by_role("status")
        self.send = page.get_by_role("button", name="Send")
        self.stop = page.get_by_role("button", name="Stop")
        self.drop = page.get_by_role("button", name="Drop the connection")
        self.new_chat = page.get_by_role("link", name="New chat")
        self.composer = page.get_by_label("Message", exact=True)
        self.title = page.get_by_role("heading", level=1)
        self.listed = page.get_by_role("navigation", name="Conversations").get_by_role("listitem")

    async def ask(self, question: str) -> None:
        """Writes it and presses Enter."""
        await expect(self.send).to_be_enabled()
        await self.composer.fill(question)
        await self.composer.press("Enter")

    async def shows(self, text: str) -> None:
        """Waits until the answer is exactly what *text* looks like, rendered at once."""
        await self.page.evaluate("async () => Object.assign(window, await import('/static/markdown.js'))")
        await self.page.wait_for_function(LOOKS_LIKE, arg=text, timeout=PATIENCE * 1000)

    async def ends(self, state: str) -> str:
        """Waits until the answer has ended so; its text to the letter, as its button copies it."""
        await expect(self.answer).to_have_attribute("data-state", state)
        await expect(self.send).to_be_visible()
        copy = self.answer.get_by_role("button", name="Copy the answer")
        if not await copy.count():
            return ""
        await self.page.bring_to_front()
        await self.page.evaluate("navigator.clipboard.writeText('')")
        await copy.dispatch_event("click")  # which moves no focus
        text: str = await self.page.evaluate(COPIED)
        await self.shows(text)
        return text


# Not asynchronous: Playwright takes a promise for a yes.
LOOKS_LIKE = """(text) => {
    const answer = [...document.querySelectorAll("[data-role=assistant]")].at(-1);
    if (!answer) return false;
    const rendered = document.createElement("div");
    new Markdown(rendered).show(text, { growing: answer.dataset.state === "streaming" });
    return answer.querySelector(".text").innerHTML === rendered.innerHTML;
}"""

COPIED = """async () => {
    for (let text; ; await new Promise(requestAnimationFrame))
        if ((text = await navigator.clipboard.readText())) return text;
}"""


async def text_of(message: Locator) -> str:
    """A message's text, to the letter."""
    text: str = await message.locator(".text").evaluate("element => element.textContent")
    return text


def last_event_ids(heads: Sequence[str]) -> list[str]:
    """What each request resumed from; "" is the beginning."""
    found = []
    for head in heads:
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        found.append(fields.get("last-event-id", ""))
    return found
