"""The examples of README.md and docs/ run, and what the pages list is all there is.

An HTML comment above a fenced block says how it is run; the blocks of a page run in their order.

* `run: app`: Python that makes an app; a page's next `run: app` begins anew.
* `run: more`: Python in the same namespace as the app before it.
* `run: client`: Python against the app before it, which is served at `http://127.0.0.1:5000`.
* `run: shell`: commands against that app, which must say something and fail at nothing.
* `run: script NAME`: a file for the commands and scripts of the page that follow, or for a test of its own below.
* `run: server …`, `run: line of …`, `run: nginx …`: `python -m tests.matrix` runs it.
* `run: proxy …`: `python -m tests.proxies` runs it.
* `not run: REASON`
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2wsgi import WSGIMiddleware
from playwright.async_api import BrowserContext, Locator, Page, async_playwright, expect
from quart import Quart

import quart_openai_sse
from quart_openai_sse import QuartOpenAISSE, StreamEnd, allow_anonymous
from quart_openai_sse.protocol.sse import SSEDecoder
from quart_openai_sse.simulator import Simulator, answer
from quart_openai_sse.testing import read, serve_app
from quart_openai_sse.web.blueprint import ROUTES
from tests.browser import Gated
from tests.machine import need_curl
from tests.matrix.page import at_port, read_page
from tests.matrix.servers import free_port
from tests.rooms import BESIDE, FLOORS, installed, read_package

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

    @property
    def is_file(self) -> bool:
        return self.how.startswith("run: script ")

    def compiled(self) -> Any:
        # Empty lines before it, so that a traceback names the line of the page.
        return compile("\n" * self.line + self.code, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[3], match[1] or "", match[4])
        for match in _FENCE.finditer(text)
    ]


def test_every_example_says_how_it_is_run() -> None:
    read = {page: blocks(page) for page in PAGES}
    unsaid = [str(each) for found in read.values() for each in found if each.language in LANGUAGES and not each.how]
    assert unsaid == []
    assert [page for page, found in read.items() if page.read_text("utf-8").count("```") != 2 * len(found)] == []


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
    without_curl = [] if shutil.which("curl") else [block for block in blocks(page) if block.how == "run: shell"]
    for block in blocks(page):
        if block.how.startswith("run: ") and block not in without_curl:
            await runner.run(block)
            said = capfd.readouterr().out
            assert said.strip() or block.how not in ("run: client", "run: shell"), f"{block} says nothing"
    refused = [each for each in upstream.counters.requests if each.status not in (None, 200)]
    assert refused == []
    if without_curl:
        need_curl()


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
                await self.load(block.compiled())
            case ["more"]:
                exec(block.compiled(), self._namespace)
            case ["client"]:
                code = compile(await self.addressed(block), str(block), "exec")
                await asyncio.to_thread(exec, code, {"__name__": "example"})
            case ["shell"]:
                await self._shell(await self.addressed(block), str(block))
            case ["script", name]:
                self._folder.joinpath(name).parent.mkdir(exist_ok=True)
                self._folder.joinpath(name).write_text(block.code, "utf-8")
            case ["server" | "line" | "nginx" | "proxy", *_]:
                assert read_page(block.page.read_text("utf-8")).runs(block.code)
            case _:
                pytest.fail(f"{block}: {block.how!r} is not a way to run it")

    async def load(self, code: Any) -> dict[str, Any]:
        """Runs what makes an app, which takes the place of the one before; its names."""
        await self._server.aclose()
        self._namespace, self._address = {"__name__": "example"}, ""
        exec(code, self._namespace)
        return self._namespace

    async def _shell(self, commands: str, name: str) -> None:
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


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[BrowserContext]:
    """A browser without a past."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield await running.new_context()
        await running.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["client.html", "eventsource.html"])
async def test_the_pages_follow_a_stream_to_its_end(name: str, browser: BrowserContext, runner: Runner) -> None:
    for block in blocks(ROOT / "docs/how-to/resume-in-the-browser.md"):
        await runner.run(block)
    tab = await browser.new_page()
    await tab.goto(f"{await runner.address()}/{name}")
    await expect(tab.locator("#state")).to_have_text("completed")
    shown = await tab.locator("#answer").text_content()
    assert shown == answer({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]})


@pytest.mark.browser
async def test_the_page_with_sources_shows_them_and_the_answer(browser: BrowserContext, runner: Runner) -> None:
    for block in blocks(ROOT / "docs/how-to/retrieval-with-sources.md"):
        if block.how != "run: shell":
            await runner.run(block)
    tab = await browser.new_page()
    await tab.goto(await runner.address())
    await tab.get_by_label("Question").fill("When are you open?")
    await tab.get_by_role("button", name="Ask").click()
    await expect(tab.locator("#sources a")).to_have_text(["Opening hours"])
    await expect(tab.locator("#answer")).to_contain_text('You asked: "When are you open?"')


class Tutorial:
    """The chat of the tutorial, as far as its files are written."""

    def __init__(self, runner: Runner, browser: BrowserContext) -> None:
        self.files = [block for block in blocks(ROOT / "docs/tutorials/chat-in-twenty-minutes.md") if block.is_file]
        self._runner = runner
        self._browser = browser

    async def write(self, files: list[Block]) -> None:
        """Saves files, as its reader does."""
        for block in files:
            await self._runner.run(block)

    async def start(self) -> dict[str, Any]:
        """Starts the app, as if in a new process; its names."""
        return await self._runner.load(compile(Path("app.py").read_text("utf-8"), "app.py", "exec"))

    async def open(self) -> Page:
        """A tab with the chat."""
        tab = await self._browser.new_page()
        await tab.goto(await self._runner.address())
        return tab

    async def load(self) -> dict[str, Any]:
        """What a page that is loaded now is told."""
        response = await self._browser.request.get(f"{await self._runner.address()}/messages")
        loaded: dict[str, Any] = await response.json()
        return loaded


@pytest.fixture
def tutorial(runner: Runner, browser: BrowserContext) -> Tutorial:
    return Tutorial(runner, browser)


async def ask(tab: Page, question: str) -> Locator:
    """Asks as soon as one can; the answers of the page."""
    await expect(tab.locator("#send")).to_be_enabled()
    await tab.get_by_label("Question").fill(question)
    await tab.get_by_label("Question").press("Enter")
    return tab.locator(".assistant")


@pytest.mark.browser
async def test_the_tutorials_first_page_streams(tutorial: Tutorial) -> None:
    await tutorial.write(tutorial.files[:3])
    await tutorial.start()
    answers = await ask(await tutorial.open(), "Hello")
    await expect(answers).to_have_text(answer({"model": "sim", "messages": [{"role": "user", "content": "Hello"}]}))


@pytest.mark.browser
async def test_the_tutorials_chat_is_found_again_in_the_middle_and_stopped(tutorial: Tutorial) -> None:
    await tutorial.write(tutorial.files)
    names = await tutorial.start()
    moon, sun = Gated("About 384,400 km, give or take.", gates=1), Gated("Eight minutes by light.", gates=1)

    with names["ai"].override(names["app"], upstream=moon):
        tab = await tutorial.open()
        await expect(await ask(tab, "How far is the moon?")).to_have_text(moon.so_far[0])
        await tab.reload()
        other = await tutorial.open()
        for each in (tab, other):
            await expect(each.locator(".user")).to_have_text("How far is the moon?")
            await expect(each.locator(".assistant")).to_have_text(moon.so_far[0])
        moon.gates[0].set()
        for each in (tab, other):
            await expect(each.locator(".assistant")).to_have_text(moon.text)
            await expect(each.locator("#stop")).to_be_hidden()

    with names["ai"].override(names["app"], upstream=sun):
        await expect((await ask(tab, "And the sun?")).last).to_have_text(sun.so_far[0])
        assert [message["role"] for message in sun.requests[0]["messages"]] == ["user", "assistant", "user"]
        await other.reload()
        await expect(other.locator(".assistant").last).to_have_text(sun.so_far[0])
        await tab.get_by_role("button", name="Stop").click()
        for each in (tab, other):
            await expect(each.locator(".assistant").last).to_have_attribute("data-note", "stopped")
        assert sun.cancelled == 1

    await tutorial.start()  # what was said is not in the process
    answers = (await tutorial.open()).locator(".assistant")
    await expect(answers).to_have_text([moon.text, sun.so_far[0]])
    await expect(answers.last).to_have_attribute("data-note", "stopped")


@pytest.mark.browser
async def test_the_tutorials_chat_shows_an_answer_once_also_between_its_storing_and_its_end(tutorial: Tutorial) -> None:
    await tutorial.write(tutorial.files)
    names = await tutorial.start()
    loaded = []

    @names["ai"].on_end
    async def load(end: StreamEnd) -> None:
        while names["past"](end.principal.id)[-1]["role"] != "assistant":
            await asyncio.sleep(0.01)
        loaded.append(await tutorial.load())

    tab = await tutorial.open()
    await ask(tab, "Hello")
    await expect(tab.locator("#send")).to_be_enabled()
    assert [(len(each["messages"]), each["live"]) for each in loaded] == [(2, None)]


@pytest.mark.slow
async def test_the_server_of_the_deployment_page_drains(upstream: Simulator, tmp_path: Path) -> None:
    port = free_port()
    for block in blocks(ROOT / "docs/how-to/deploy.md"):
        if block.how.startswith("run: script "):
            code = at_port(block.code, port)
            (tmp_path / block.how.split()[-1]).write_text(code, "utf-8")
    server = await asyncio.create_subprocess_exec(
        sys.executable, "serve.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    body = {"model": "sim-length-30-rate-10", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    http = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/v1",
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
            asked = {**body, "model": "sim-fast"}
            statuses = [(await http.post("/chat/completions", json=asked)).status_code]
            while statuses[-1] == 200:  # in its grace
                await asyncio.sleep(0.01)
                statuses.append((await http.post("/chat/completions", json=asked)).status_code)
            assert (statuses[0], statuses[-1]) == (200, 503)
            received += b"".join([piece async for piece in pieces])
        assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    assert SSEDecoder().feed(received)[-1].data == "[DONE]"


# The lines that streaming takes ---------------------------------------------------------------------------------------

UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TEENS = ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
NUMBERS = [*UNITS, *TEENS, "twenty"]
ADDED_TO = ["add-to-your-app", "beside-flask"]


def how_to(name: str) -> Path:
    return ROOT / "docs/how-to" / f"{name}.md"


def additions(page: Path) -> dict[str, list[Block]]:
    """The numbers of lines that a page states, and the blocks above each that it has added to the app so far."""
    text = page.read_text("utf-8")
    stated = {match[1]: text.count("\n", 0, match.start()) for match in re.finditer(r"\*\*(\S+) lines\*\*", text)}
    added = [block for block in blocks(page) if block.how == "run: more"]
    return {number: [block for block in added if block.line < line] for number, line in stated.items()}


@pytest.mark.parametrize("name", ADDED_TO)
def test_a_page_counts_the_lines_it_adds(name: str) -> None:
    counted = {
        said: NUMBERS[sum(bool(line.strip()) for block in added for line in block.code.splitlines())]
        for said, added in additions(how_to(name)).items()
    }
    assert list(counted.values()) == list(counted) != []


@pytest.mark.parametrize("name", ADDED_TO)
async def test_an_app_works_as_before_and_streams_with_the_lines_that_are_added(
    name: str, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = how_to(name)
    app = next(block for block in blocks(page) if block.how == "run: app")
    for number, added in enumerate([[], *additions(page).values()]):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        names = await runner.load(app.compiled())
        names.setdefault("app", WSGIMiddleware(names.get("flask_app")))  # as long as there is only that
        for block in added:
            await runner.run(block)
        async with httpx.AsyncClient(base_url=await runner.address()) as http:
            assert (await http.post("/login", data={"name": "alice"})).status_code == 200
            assert (await http.get("/")).status_code == 200
            body = {"stream": True, "messages": [{"role": "user", "content": "Hello"}]}
            response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == (200 if added else 404)
        assert not added or (await read(response.content)).outcome == "completed"


# Lists that must be whole ---------------------------------------------------------------------------------------------


def test_the_routes_page_has_every_route() -> None:
    listed = re.findall(r"^\| `(\w+)` \| `([A-Z]+) (\S+)` \|", reference("routes"), re.M)
    routes = [(group, method, path) for group in ROUTES for method, path, _ in ROUTES[group]]
    assert listed == [(group, method, path.replace("<path:", "<")) for group, method, path in routes]


PUBLIC = {
    "": [],
    "auth": [],
    "auth.jwt": [],
    "flask": [],
    "flow": ["Flow"],
    "formats": [],
    "limits.redis": ["RedisCounts"],
    "limits.starts": [],
    "logs": [],
    "logs.entries": ["parse_place"],
    "logs.mirror.redis": ["redis_log"],
    "simulator": [],
    "testing": [],
    "errors": ["ConfigurationError", "ErrorValue"],  # docs/reference/errors.md is written from the others
    "observers": ["Observer"],
    "producers.transforms": ["Transform"],
    "protocol.sse": ["SSEDecoder", "ServerSentEvent", "encode"],
    "protocol.trace_context": ["TraceIdFilter"],
    "upstreams": ["Attempt", "Sink", "Upstream"],
    "upstreams.breaker": ["Breaker"],
    "upstreams.openai": ["OpenAIUpstream"],
    "upstreams.retries": ["Backoff"],
    "upstreams.several": ["Candidate", "Upstreams"],
    "web.openapi": ["openapi_document"],
}
"""The modules that users import from, and what they find there; if nothing is said here, its `__all__`."""


def public_names() -> Iterator[tuple[str, str]]:
    """Each module and each of its public names, unless the package itself has the same thing."""
    for short, names in PUBLIC.items():
        module = import_module(f"quart_openai_sse.{short}".rstrip("."))
        for name in names or module.__all__:
            if not short or getattr(module, name) is not getattr(quart_openai_sse, name, None):
                yield module.__name__, name


def test_the_api_page_has_every_public_name_below_the_module_it_is_imported_from() -> None:
    listed, module = [], ""
    directives = r"^\.\. (currentmodule|auto(?:class|exception|function|data)):: (\S+)$"
    for directive, name in re.findall(directives, reference("api"), re.M):
        if directive == "currentmodule":
            module = name
        else:
            listed.append((module, name))
    assert sorted(listed) == sorted(public_names())


async def test_the_log_page_has_every_field_of_a_response(caplog: pytest.LogCaptureFixture) -> None:
    app = Quart("example")
    QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1")
    with caplog.at_level("INFO", "quart_openai_sse.response"):
        await app.test_client().get("/v1/health")
    listed = re.findall(r"^\| `(response_\w+)` \|", reference("log-fields"), re.M)
    assert listed == [name for name in vars(caplog.records[-1]) if name.startswith("response_")]


def test_the_architecture_page_has_every_module() -> None:
    package = read_package(installed())
    floors = {**FLOORS, "beside the floors": BESIDE}
    page = (ROOT / "docs/discussion/architecture.md").read_text("utf-8")
    table = page.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    listed: dict[str, list[str]] = {}
    missing = []
    for floor, room, files in re.findall(r"^\| (?:\*\*(.+)\*\*|`(.+?)`) \|[^|]*\| (.*) \|$", table, re.M):
        if floor:
            listed[floor.lower()] = []
        else:
            listed[[*listed][-1]].append(room)
            missing += [
                name for name in re.findall(r"`([\w/]+\.\w+)`", files) if not (installed() / room / name).is_file()
            ]
    rooms = {place: f"{place}.py" if f"{place}.py" in package.files else f"{place}/" for place in package.places}
    assert listed == {floor.lower(): [rooms[place] for place in places] for floor, places in floors.items()}
    assert missing == []

    picture = (ROOT / "docs/_static/architecture.svg").read_text("utf-8")
    assert sorted(re.findall(r'<text class="name"[^>]*>(\w+)</text>', picture)) == sorted(package.places)


def test_the_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).is_file()] == []
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("[th]*/*.md")}  # tutorials, how-to
    assert pages - set(links) == set()


def test_the_readme_says_how_to_try_and_to_test_it() -> None:
    commands = [block.code.strip() for block in blocks(ROOT / "README.md") if "pip install" in block.code]
    assert [command.split()[-1] for command in commands] == ["example_app", "pytest"]  # what .ci/run looks for


def reference(page: str) -> str:
    return (ROOT / "docs/reference" / f"{page}.md").read_text("utf-8")
