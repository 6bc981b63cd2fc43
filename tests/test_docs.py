"""The examples of README.md and docs/ run, and what the pages list is all there is.

An HTML comment above a fenced block says how it is run; the blocks of a page run in their order.

* `run: app`: Python that makes an app; a page's next `run: app` begins anew.
* `run: more`: Python in the same namespace as the app before it.
* `run: client`: Python against the app before it, which is served at `http://127.0.0.1:5000`.
* `run: shell`: commands against that app, which must say something and fail at nothing.
* `run: script NAME`: a file for the commands and scripts of the page that follow, or for a test of its own below.
* `not run: REASON`
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import async_playwright, expect
from quart import Quart

import quart_openai_sse
from quart_openai_sse import QuartOpenAISSE, SSEDecoder, allow_anonymous
from quart_openai_sse.blueprint import ROUTES
from quart_openai_sse.simulator import Simulator, answer
from quart_openai_sse.testing import serve_app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "http://127.0.0.1:5000"
LANGUAGES = {"python", "sh", "html", "js"}  # what could run: every block of these says how, or why not
_FENCE = re.compile(r"(?:<!-- ((?:not )?run: [^\n]+) -->\n)?^( *)```([^\n]*)\n(.*?)^\2```$", re.M | re.S)

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    how: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def compiled(self) -> Any:
        # Empty lines before it, so that a traceback names the line of the page.
        return compile("\n" * self.line + self.code, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[3], match[1] or "", match[4])
        for match in _FENCE.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_example_says_how_it_is_run(page: Path) -> None:
    unsaid = [str(block) for block in blocks(page) if block.language in LANGUAGES and not block.how]
    assert unsaid == []
    assert page.read_text("utf-8").count("```") == 2 * len(blocks(page))


@pytest.fixture
def upstream(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """What the examples ask."""
    monkeypatch.setenv("OPENAI_BASE_URL", simulator.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    return simulator


RUN = [page for page in PAGES if any(block.how.startswith("run:") for block in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
async def test_the_examples_run(
    page: Path, runner: Runner, upstream: Simulator, capfd: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if block.how.startswith("run: "):
            await runner.run(block)
            said = capfd.readouterr().out
            assert said.strip() or block.how not in ("run: client", "run: shell"), f"{block} says nothing"
    refused = [each for each in upstream.counters.exchanges if each.status not in (None, 200)]
    assert refused == []


@pytest.fixture
async def runner(upstream: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runner]:
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("quart_openai_sse")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers])
    async with AsyncExitStack() as server:
        yield Runner(server, tmp_path)


class Runner:
    """Runs the blocks of one page, in a folder that is the current one. *server* is left to whoever made it."""

    def __init__(self, server: AsyncExitStack, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._namespace: dict[str, Any] = {}
        self._address = ""

    async def run(self, block: Block) -> None:
        match block.how.removeprefix("run: ").split():
            case ["app"]:
                await self._server.aclose()
                self._namespace, self._address = {"__name__": "example"}, ""
                exec(block.compiled(), self._namespace)
            case ["more"]:
                exec(block.compiled(), self._namespace)
            case ["client"]:
                code = compile(await self.addressed(block), str(block), "exec")
                await asyncio.to_thread(exec, code, {"__name__": "example"})
            case ["shell"]:
                await self._shell(await self.addressed(block), str(block))
            case ["script", name]:
                self._folder.joinpath(name).write_text(block.code, "utf-8")
            case _:
                pytest.fail(f"{block}: {block.how!r} is not a way to run it")

    async def _shell(self, commands: str, name: str) -> None:
        if not shutil.which("curl") and not os.environ.get("CI"):
            pytest.skip("there is no curl on this machine")
        strict = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n'
        # As in one terminal: what is exported in one block is there in the next.
        script = f"{strict}[ ! -f exported ] || . ./exported\n{commands}\nexport -p >exported"
        process = await asyncio.create_subprocess_exec("bash", "-c", script)
        assert await process.wait() == 0, name

    async def addressed(self, block: Block) -> str:
        """The block's code, with the address at which the app is served."""
        return block.code.replace(ADDRESS, await self.address())

    async def address(self) -> str:
        if not self._address:
            app: Quart = self._namespace["app"]
            self._address = "http://" + await self._server.enter_async_context(serve_app(app))
        return self._address


# Examples that take more than running them ----------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("name", ["client.html", "eventsource.html"])
async def test_the_pages_follow_a_stream_to_its_end(name: str, chromium: str, runner: Runner) -> None:
    for block in blocks(ROOT / "docs/how-to/resume-in-the-browser.md"):
        await runner.run(block)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = await browser.new_page()
        await tab.goto(f"{await runner.address()}/{name}")
        await expect(tab.locator("#state")).to_have_text("completed")
        shown = await tab.locator("#answer").text_content()
        await browser.close()
    assert shown == answer({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]})


async def test_the_server_of_the_deployment_page_drains(upstream: Simulator, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for block in blocks(ROOT / "docs/how-to/deploy.md"):
        if block.how.startswith("run: script "):
            code = block.code.replace(ADDRESS.removeprefix("http://"), address)
            (tmp_path / block.how.split()[-1]).write_text(code, "utf-8")
    server = await asyncio.create_subprocess_exec(
        sys.executable, "serve.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    body = {"model": "sim-length-30-rate-10", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    http = httpx.AsyncClient(
        base_url=f"http://{address}/v1",
        headers={"Authorization": "Bearer s3cret"},
        transport=httpx.AsyncHTTPTransport(retries=8),  # until the server listens
    )
    try:
        async with http, http.stream("POST", "/chat/completions", json=body, timeout=30) as response:
            pieces = response.aiter_bytes()
            received = await anext(pieces)
            server.send_signal(signal.SIGTERM)
            while (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            assert (await http.post("/chat/completions", json=body)).json()["error"]["code"] == "draining"
            received += b"".join([piece async for piece in pieces])
        assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    assert SSEDecoder().feed(received)[-1].data == "[DONE]"


# Lists that must be whole ---------------------------------------------------------------------------------------------


def test_the_routes_page_has_every_route() -> None:
    listed = re.findall(r"^\| `(\w+)` \| `([A-Z]+) (\S+)` \|", reference("routes"), re.M)
    assert listed == [(group, method, path) for group in ROUTES for method, path, _ in ROUTES[group]]


def test_the_api_page_has_every_public_name() -> None:
    listed = re.findall(r"^\.\. auto(?:class|function|data):: (\w+)$", reference("api"), re.M)
    assert sorted(listed) == sorted(quart_openai_sse.__all__)


async def test_the_log_page_has_every_field_of_a_response(caplog: pytest.LogCaptureFixture) -> None:
    app = Quart("example")
    QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1")
    with caplog.at_level("INFO", "quart_openai_sse.response"):
        await app.test_client().get("/v1/health")
    listed = re.findall(r"^\| `(response_\w+)` \|", reference("log-fields"), re.M)
    assert listed == [name for name in vars(caplog.records[-1]) if name.startswith("response_")]


def test_the_architecture_page_has_every_module() -> None:
    page = (ROOT / "docs/discussion/architecture.md").read_text("utf-8")
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| [\w ]+ \| (`.*?) \|", page, re.M)))
    package = Path(quart_openai_sse.__file__).parent
    modules = [*package.glob("[!_]*.py"), *(path.parent for path in package.glob("*/__init__.py"))]
    assert sorted(listed) == sorted(path.stem for path in modules)


def test_the_readme_says_how_to_try_and_to_test_it() -> None:
    commands = [block.code.strip() for block in blocks(ROOT / "README.md") if "pip install" in block.code]
    assert [command.split()[-1] for command in commands] == ["example_app", "pytest"]  # what .ci/run looks for


def reference(page: str) -> str:
    return (ROOT / "docs/reference" / f"{page}.md").read_text("utf-8")
