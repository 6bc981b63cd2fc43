"""What the tests share: an app with a scripted upstream, a real server around an app, the browser."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.config import Config
from quart_openai_sse.simulator import Simulator, serve_simulator
from quart_openai_sse.testing import ScriptedUpstream, serve_app
from tests.browser import ARGUMENTS, NewPage, NewSite, Site, listened_page, serve_example
from tests.machine import chromium_path, nginx_path, redis_path

TOKENS = {"token-ann": "ann", "token-bob": "bob"}
ANN = {"Authorization": "Bearer token-ann"}
BOB = {"Authorization": "Bearer token-bob"}
QUESTION = [{"role": "user", "content": "How far is the moon?"}]

CreateApp = Callable[..., tuple[Quart, QuartOpenAISSE]]
Serve = Callable[[Quart], Any]


class Clock:
    """A clock that a test sets: *now* is in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--transport", choices=["own", "httpx"], default="own", help="what carries requests upstream")


def pytest_configure(config: pytest.Config) -> None:
    """Makes `--transport` the default of the option, and lets the machine's certificates be read once."""
    own = config.getoption("--transport") == "own"
    Config.own_transport = Config.__dataclass_fields__["own_transport"].default = own
    Config.__init__.__kwdefaults__["own_transport"] = own
    # Each client of httpx reads them, also for plain HTTP: 25 ms, hundreds of times.
    for module in (httpx._transports.default, httpx2._transports.default):
        module.create_ssl_context = functools.cache(module.create_ssl_context)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than cores, since most tests wait for a socket; none for files or tests that are named."""
    named = [argument for argument in config.args if not Path(argument.partition("::")[0]).is_dir()]
    return 0 if named else (os.cpu_count() or 1) + 1


PROGRAMS = {"chromium", "nginx", "redis_server", "start_process", "running_site"}
"""Fixtures that start a program, or name one to be started: a test that uses one is in CI's group."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that are slow by what they use, and begins with those that may take minutes."""
    for item in items:
        if isinstance(item, pytest.Function) and PROGRAMS.intersection(item.fixturenames):
            item.add_marker("slow")
    items.sort(key=lambda item: all(mark.args[0] < 300 for mark in item.iter_markers("timeout")))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keeps the garbage collector, which many tests call, from looking at all modules and tests each time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what was left out."""
    if config.option.markexpr == "not slow":
        terminalreporter.write_line(
            "Not run: CI's group (`python -m pytest -m slow`), which needs Chromium, nginx, Redis, Go, Gin's sources."
        )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key or address of the machine reaches a test."""
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "QUART_", "EXAMPLE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def create_app() -> CreateApp:
    """Makes an app with the extension, for ann and bob."""

    def create(upstream: ScriptedUpstream | None = None, **options: Any) -> tuple[Quart, QuartOpenAISSE]:
        app = Quart(__name__)
        app.secret_key = "secret"
        options.setdefault("auth", bearer_tokens(TOKENS))
        if upstream is not None:
            options["upstream"] = lambda _: upstream
        options.setdefault("base_url", "http://127.0.0.1:9/v1")
        options.setdefault("model", "scripted")
        options.setdefault("retries", 0)
        return app, QuartOpenAISSE(app, **options)

    return create


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves an app on a loopback socket, and gives a client of it, as ann."""
    async with AsyncExitStack() as stack:

        async def start(app: Quart, **options: Any) -> httpx.AsyncClient:
            address = await stack.enter_async_context(serve_app(app))
            options.setdefault("headers", ANN)
            client = httpx.AsyncClient(base_url=f"http://{address}", timeout=30, **options)
            return await stack.enter_async_context(client)

        yield start


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """The simulator, as fast as it can."""
    async with serve_simulator(first_token_delay=0, tokens_per_second=0) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium."""
    return chromium_path()


@pytest.fixture(scope="session")
def nginx() -> str:
    """The path of nginx."""
    return nginx_path()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Path]:
    """The socket of a Redis that is empty and stores nothing on disk."""
    socket = tmp_path / "redis.sock"
    command = [
        redis_path(),
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--dir",
        tmp_path,
        "--save",
        "",
        "--daemonize",
        "no",
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert any(b"eady to accept connections" in line for line in process.stdout), "redis-server has ended"
            yield socket
        finally:
            process.terminate()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """One Chromium for all tests that run on the session's event loop; each has pages of its own."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=chromium,
            args=ARGUMENTS,
            ignore_default_args=["--disable-back-forward-cache"],  # people have it
        )
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="session")
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is closed after the test: pages before sites."""
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def new_site(stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> NewSite:
    """Serves the example app, whose model is *model*."""

    async def new_site(model: str = "sim-fast", **options: Any) -> Site:
        monkeypatch.setenv("OPENAI_MODEL", model)
        return await stack.enter_async_context(serve_example(**options))

    return new_site


@pytest.fixture
def new_page(stack: AsyncExitStack, browser: Browser) -> NewPage:
    """Opens a page that is listened to."""

    async def new_page(**options: Any) -> Page:
        return await stack.enter_async_context(listened_page(browser, **options))

    return new_page
