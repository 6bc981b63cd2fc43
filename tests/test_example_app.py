"""The example app as a person starts it: a process, its page over HTTP, its API, its end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openai import AsyncOpenAI

from example_app import create_app
from example_app.__main__ import main
from example_app.conversations import Conversations
from example_app.handbook import HANDBOOK
from example_app.logins import LoginTries, TooManyTries
from quart_openai_sse.simulator import answer, serve_simulator
from quart_openai_sse.testing import ReadStream, read, serve_app

ROOT = Path(__file__).parent.parent
TOKEN = {"EXAMPLE_TOKEN": "token"}
BEARER = {"Authorization": "Bearer token"}
QUESTION = "When are you open?"
ASKED = {"content": QUESTION}
ROUTES = [
    ("GET", "/conversations"),
    ("POST", "/conversations"),
    ("GET", "/conversations/1"),
    ("POST", "/conversations/1/messages"),
    ("PATCH", "/conversations/1"),
    ("DELETE", "/conversations/1"),
]
VENDOR = ROOT / "example_app" / "static" / "vendor"


@dataclass
class Example:
    """A running example app."""

    url: str
    _stack: AsyncExitStack

    async def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of its own cookies and connections."""
        client = httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False, **options)
        return await self._stack.enter_async_context(client)

    async def browser(self, name: str = "ada", password: str = "lovelace") -> httpx.AsyncClient:
        """A client that has logged in."""
        client = await self.client()
        response = await client.post("/login", data={"username": name, "password": password})
        assert (response.status_code, response.headers.get("location")) == (303, "/")
        return client


@dataclass
class Started(Example):
    """A running example app in a process of its own."""

    process: Process
    welcome: str
    """What it printed first."""

    async def ended(self) -> tuple[int | None, str]:
        """The exit code, and what was written to stderr."""
        _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


class Ended(NamedTuple):
    """A command that has ended."""

    status: int
    output: str
    errors: str


Start = Callable[..., Any]


@pytest.fixture
async def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Serves the example app in this process, with *environ* set and a quick model unless another is asked for."""
    async with AsyncExitStack() as stack:

        async def serve(**environ: str) -> Example:
            for name, value in {"OPENAI_MODEL": "sim-fast", **environ}.items():
                monkeypatch.setenv(name, value)
            simulator = await stack.enter_async_context(serve_simulator(first_token_delay=0))
            app = create_app(DATABASE=tmp_path / "chat.db", SIMULATED=True, OPENAI_SSE_BASE_URL=simulator.base_url)
            return Example("http://" + await stack.enter_async_context(serve_app(app)), stack)

        yield serve


@pytest.fixture
async def start_process(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the example app with *arguments* and *environ*, on a free port, with a database of the test's own."""
    async with AsyncExitStack() as stack:

        async def start_process(*arguments: str, **environ: str) -> Example:
            environ = {"EXAMPLE_DATABASE": str(tmp_path / "chat.db"), **environ}
            process = await stack.enter_async_context(run("--port", "0", *arguments, **environ))
            lines = [(await _line(process))]
            while len(lines) < 1 + ("OPENAI_BASE_URL" not in environ) + ("EXAMPLE_TOKEN" in environ):
                lines.append(await _line(process))
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+(?=/ )", lines[0])
            return Started(url, stack, process, "".join(lines))

        yield start_process


@asynccontextmanager
async def run(*arguments: str, **environ: str) -> AsyncIterator[Process]:
    """`python -m example_app` in an environment of its own, killed if it outlives the block."""
    command = (sys.executable, "-m", "example_app", *arguments)
    environ = {"PATH": os.defpath, **environ}
    # Nobody reads stderr before the end, and a process blocks when the buffer of its log lines is full.
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environ, stdout=PIPE, stderr=PIPE, limit=16 << 20
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _line(process: Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    if not line:
        pytest.fail((await process.communicate())[1].decode())
    return line


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of an answer in OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "user_message"}
    return error


# The page -----------------------------------------------------------------------------------------------------------


async def test_who_is_not_logged_in_is_sent_to_the_login(serve: Start) -> None:
    client = await (await serve()).client()
    page = await client.get("/")
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert (await client.get("/c/1")).headers["location"] == "/login"
    for method, path in ROUTES:
        # It is refused before its body was read, after which the server closes the connection.
        body = {"content": QUESTION, "title": "A title"}
        refused = await client.request(method, path, json=body, headers={"Connection": "close"})
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")


async def test_a_wrong_password_is_refused_with_a_sentence(serve: Start) -> None:
    client = await (await serve()).client()
    for form in ({"username": "ada", "password": "hopper"}, {"username": "eve", "password": ""}, {}):
        refused = await client.post("/login", data=form)
        assert refused.status_code == 401
        assert "This name and password do not go together." in refused.text
        assert "set-cookie" not in refused.headers
    assert (await client.get("/")).headers["location"] == "/login"


async def test_a_wrong_password_keeps_the_name(serve: Start) -> None:
    client = await (await serve()).client()
    page = (await client.get("/login")).text
    assert re.search(r'<input id="username"[^>]* autofocus', page)
    page = (await client.post("/login", data={"username": ' Ada "<b>', "password": "hopper"})).text
    assert 'value="Ada &#34;&lt;b&gt;"' in page
    assert re.search(r'<input id="password"[^>]* autofocus', page)
    assert "hopper" not in page


async def test_after_ten_wrong_passwords_the_right_one_is_not_looked_at(serve: Start) -> None:
    client = await (await serve()).client()
    wrong = [await client.post("/login", data={"username": "Ada", "password": "hopper"}) for _ in range(10)]
    assert {each.status_code for each in wrong} == {401}
    refused = await client.post("/login", data={"username": "ada", "password": "lovelace"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (429, False)
    assert "Too many wrong passwords. Please try again in" in refused.text
    assert 'value="ada"' in refused.text
    assert 0 < int(refused.headers["Retry-After"]) <= 300
    other = await client.post("/login", data={"username": "grace", "password": "hopper"})
    assert (other.status_code, other.headers["location"]) == (303, "/")


async def test_who_tries_many_names_from_one_address_is_refused_too(serve: Start) -> None:
    client = await (await serve()).client()
    tries = [client.post("/login", data={"username": f"user{number}", "password": "x"}) for number in range(60)]
    statuses = [each.status_code for each in await asyncio.gather(*tries)]
    assert (statuses.count(401), statuses.count(429)) == (50, 10)


def test_right_passwords_are_not_counted_and_the_count_is_over_after_five_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries, now = LoginTries(), time.time()
    assert all(tries.check("ada", "::1", is_right=lambda: True) for _ in range(60))
    assert not any(tries.check("ada", "::1", is_right=lambda: False) for _ in range(10))
    with pytest.raises(TooManyTries, match="in 5 minutes") as refused:
        tries.check("ada", "::1", is_right=lambda: True)
    assert 290 < refused.value.retry_after <= 300
    monkeypatch.setattr(time, "time", lambda: now + 301)
    assert tries.check("ada", "::1", is_right=lambda: True)


def test_a_stranger_cannot_lock_a_user_out_of_an_address_with_a_login() -> None:
    tries = LoginTries()
    assert tries.check("ada", "192.0.2.1", is_right=lambda: True)
    for number in range(10):
        assert not tries.check("ada", f"198.51.100.{number}", is_right=lambda: False)
    for address in ("198.51.100.99", "192.0.2.2"):
        with pytest.raises(TooManyTries):
            tries.check("ada", address, is_right=lambda: True)
    assert tries.check("ada", "192.0.2.1", is_right=lambda: True)


@pytest.mark.parametrize(
    ("addresses", "refused"),
    [
        ("2001:db8:0:1::{}", True),  # of one client
        ("2001:db8:0:{}::1", False),
        ("fe80::{}%eth0", True),
        ("192.0.2.{}", False),
        ("::ffff:192.0.2.{}", False),  # IPv4, on a server that listens for both
    ],
)
def test_the_ipv6_addresses_of_one_network_are_counted_together(addresses: str, refused: bool) -> None:
    tries = LoginTries()
    for number in range(50):
        assert not tries.check(f"user{number}", addresses.format(number), is_right=lambda: False)
    with pytest.raises(TooManyTries) if refused else nullcontext():
        tries.check("ada", addresses.format(77), is_right=lambda: True)


async def test_the_pages_hold_no_script_but_files_and_a_policy_says_so(serve: Start) -> None:
    example = await serve()
    client = await example.browser()
    for path in ("/login", "/"):
        page = await client.get(path)
        assert page.status_code == 200
        assert page.headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'none'"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son\w+=", page.text) == []
        for file in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
            assert (await client.get(file)).status_code == 200
    assert 'src="/static/chat.js"' in page.text
    assert "answers come from the built-in simulator" in page.text


async def test_the_scripts_are_modules_that_import_only_what_is_served(serve: Start) -> None:
    client = await (await serve()).browser()
    loaded, seen = ["/static/chat.js"], set()
    while loaded:
        path = loaded.pop()
        if path in seen:
            continue
        seen.add(path)
        script = await client.get(path)
        assert script.status_code == 200, path
        assert script.headers["content-type"].startswith(("text/javascript", "application/javascript")), path
        imported = re.findall(r'^(?:import|export) (?:[^"\';]* from )?"([^"]+)";$', script.text, re.MULTILINE)
        loaded += [str(httpx.URL(path).join(each)) for each in imported]
    files = {f"/static/{file.relative_to(VENDOR.parent)}" for file in VENDOR.parent.rglob("*.*js")}
    assert seen == {*files, "/v1/client.js"}


async def test_other_peoples_code_is_what_the_list_says_it_is() -> None:
    listed = re.findall(
        r"^\| (\S+) \| (\S+) \| (\S+) \| .+, (\S+) \| (\w+) \|$", (VENDOR / "README.md").read_text(), re.M
    )
    assert {name for name, *_ in listed} == {file.name for file in VENDOR.glob("*.*js")}
    for name, _, version, license_, digest in listed:
        content = (VENDOR / name).read_bytes()
        assert sha256(content).hexdigest() == digest
        assert version in content[:300].decode()
        assert (VENDOR / license_).is_file()


async def test_a_page_is_not_kept_for_who_comes_after_a_log_out(serve: Start) -> None:
    client = await (await serve()).browser()
    for path in ("/", "/conversations"):
        assert (await client.get(path)).headers["cache-control"] == "no-store"
    assert "no-store" not in (await client.get("/static/chat.js")).headers.get("cache-control", "")


async def test_logging_out_ends_it(serve: Start) -> None:
    client = await (await serve()).browser()
    assert (await client.post("/logout")).headers["location"] == "/login"
    assert (await client.get("/")).headers["location"] == "/login"


# Questions and answers ----------------------------------------------------------------------------------------------


async def test_an_answer_from_the_handbook_is_stored_with_its_sources(serve: Start) -> None:
    client = await (await serve()).browser()
    assert (await client.get("/conversations")).json() == {"data": []}

    asked = await client.post("/conversations", json={"model": "handbook", "content": QUESTION})
    assert asked.status_code == 201
    started = asked.json()
    assert started["url"] == f"/v1/streams/{started['id']}"
    stream = await read((await client.get(started["url"])).content)
    assert (stream.outcome, stream.error) == ("completed", None)
    names = [event.event for event in stream.events if event.event != "delta"]
    assert names == ["status", "sources", "completed"]
    assert "That settles it." in stream.text

    conversation = await opened(client, started)
    assert (conversation["title"], conversation["answering"]) == (QUESTION, None)
    question, answered = conversation["messages"]
    assert (question["id"], question["role"], question["content"]) == (started["question"], "user", QUESTION)
    assert (answered["role"], answered["outcome"], answered["content"]) == ("assistant", "completed", stream.text)
    assert answered["stream"] == started["id"]
    assert {"title": "Opening hours", "text": HANDBOOK["Opening hours"]} in answered["sources"]


async def test_the_conversation_so_far_is_asked_with_the_question(start_process: Start) -> None:
    async with serve_simulator(tokens_per_second=0, first_token_delay=0) as simulator:
        example = await start_process(OPENAI_BASE_URL=simulator.base_url, OPENAI_MODEL="sim-length-20")
        client = await example.browser()
        one = await ask(client, "One?")
        two = await ask(client, "Two?", one)
        other = await ask(client, "Another conversation?")
        assert two["conversation"]["id"] == one["conversation"]["id"] != other["conversation"]["id"]
        messages = (await opened(client, one))["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * 2
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        assert messages[3]["content"] == answer({"model": "sim-length-20", "messages": said[:3]})
        assert [each["title"] for each in await listed(client)] == ["Another conversation?", "One?"]


async def test_conversations_survive_a_restart_and_a_stopped_answer_is_kept(start_process: Start) -> None:
    example = await start_process("--drain-timeout", "0.1", EXAMPLE_SECRET_KEY="always the same")
    client = await example.browser()
    done = await ask(client, QUESTION, model="sim-fast")
    stopped = (await client.post("/conversations", json={"model": "sim-long", "content": "Stop?"})).json()
    cut = (await client.post("/conversations", json={"model": "sim-long", "content": "Cut?"})).json()
    async with client.stream("GET", stopped["url"]) as response:
        events = response.aiter_raw()
        beginning = await _first_words(events)
        assert (await opened(client, stopped))["answering"] == {"id": stopped["id"], "url": stopped["url"]}
        assert [each["answering"] for each in await listed(client)] == [True, True, False]
        assert (await client.delete(stopped["url"])).status_code == 204
        seen = await _read(beginning, events)
    assert seen.outcome == "stopped"
    assert seen.text
    async with client.stream("GET", cut["url"]) as response:
        await _first_words(response.aiter_raw())
    example.process.terminate()
    assert (await example.ended())[0] == 0

    again = await start_process(EXAMPLE_SECRET_KEY="always the same")
    client = await again.client(cookies=client.cookies)
    assert [each["title"] for each in await listed(client)] == ["Cut?", "Stop?", QUESTION]
    assert (await opened(client, done))["messages"][1]["outcome"] == "completed"
    kept = (await opened(client, stopped))["messages"][1]
    assert (kept["outcome"], kept["content"]) == ("stopped", seen.text)
    kept = (await opened(client, cut))["messages"][1]
    note = "The server was restarted before the answer was complete. Please ask again."
    assert (kept["outcome"], kept["note"]) == ("failed", note)
    assert kept["content"]


async def test_a_conversation_is_renamed_and_deleted_with_its_running_answer(serve: Start) -> None:
    client = await (await serve()).browser()
    started = (await client.post("/conversations", json={"model": "sim-long", "content": " One \n two?"})).json()
    assert started["conversation"]["title"] == "One two?"
    path = f"/conversations/{started['conversation']['id']}"
    assert (await client.patch(path, json={"title": " Another \n title "})).status_code == 204
    assert [each["title"] for each in await listed(client)] == ["Another title"]

    assert (await client.delete(path)).status_code == 204
    stream = await read((await client.get(started["url"])).content)
    assert stream.outcome == "stopped"
    assert (await client.get("/v1/streams")).json()["data"] == []
    assert await listed(client) == []
    for method, body in (("GET", None), ("PATCH", {"title": "Again"}), ("DELETE", None)):
        refused = await client.request(method, path, json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (404, "conversation_not_found")
    page = await client.get(f"/c/{started['conversation']['id']}")
    assert page.status_code == 404
    assert "This conversation does not exist, or it was deleted." in page.text


async def test_an_answer_that_is_stored_twice_is_there_once(tmp_path: Path) -> None:
    """As by a worker that died, and by the one that has taken its stream over."""
    conversations = Conversations(tmp_path / "chat.db")
    try:
        asked = await conversations.ask(QUESTION, owner="ada")
        for content, stream in (("At ei", "1f"), ("At eight.", "1f"), ("Another", "2f")):
            await conversations.add(asked.id, owner="ada", role="assistant", content=content, stream=stream)
        found = await conversations.get(asked.id, owner="ada")
    finally:
        await conversations.close()
    assert [message.content for message in found.messages] == [QUESTION, "At eight.", "Another"]


async def test_a_second_question_waits_for_the_first_answer(serve: Start) -> None:
    client = await (await serve()).browser()
    started = (await client.post("/conversations", json={"model": "sim-long", "content": "One?"})).json()
    messages = f"/conversations/{started['conversation']['id']}/messages"
    refused = await client.post(messages, json={"content": "Two?"})
    assert (refused.status_code, error_of(refused)["code"]) == (409, "already_answering")
    assert len((await opened(client, started))["messages"]) == 1
    assert (await client.delete(started["url"])).status_code == 204
    await client.get(started["url"])
    assert (await client.post(messages, json={"content": "Two?", "model": "sim-fast"})).status_code == 201


async def test_of_questions_at_the_same_moment_one_is_asked(serve: Start) -> None:
    client = await (await serve()).browser()
    started = (await client.post("/conversations", json={"model": "sim-fast", "content": "One?"})).json()
    await client.get(started["url"])
    messages = f"/conversations/{started['conversation']['id']}/messages"
    asking = [client.post(messages, json={"content": f"And {number}?", "model": "sim-long"}) for number in range(8)]
    statuses = [response.status_code for response in await asyncio.gather(*asking)]
    assert sorted(statuses) == [201, *[409] * 7]
    assert [message["role"] for message in (await opened(client, started))["messages"]] == ["user", "assistant", "user"]


async def test_a_form_elsewhere_logs_nobody_in_or_out(serve: Start) -> None:
    client = await (await serve()).browser()
    grace = {"username": "grace", "password": "hopper"}
    for origin in ("https://elsewhere.example", "null"):
        headers = {"Origin": origin, "Connection": "close"}
        for path in ("/login", "/logout"):
            refused = await client.post(path, data=grace, headers=headers)
            assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    own = await client.post("/logout", headers={"Origin": str(client.base_url).rstrip("/")})
    assert own.status_code == 303


async def test_a_title_is_the_first_words_of_the_question(serve: Start) -> None:
    client = await (await serve()).browser()
    for question, title in (
        ("word " * 30, "word " * 12 + "…"),
        ("x" * 70, "x" * 60 + " …"),
        ("x" * 60, "x" * 60),
        ("half an emoji \ud83d", "half an emoji \ufffd"),
    ):
        data = json.dumps({"content": question, "model": "sim-fast"})
        started = await client.post("/conversations", content=data, headers={"Content-Type": "application/json"})
        assert (started.status_code, started.json()["conversation"]["title"]) == (201, title)


async def test_a_second_account_sees_nothing_of_the_first(serve: Start) -> None:
    example = await serve(**TOKEN)
    ada = await example.browser()
    others = [await example.browser("grace", "hopper"), await example.client(headers=BEARER)]
    started = (await ada.post("/conversations", json={"model": "sim-long", "content": "A secret?"})).json()
    conversation = f"/conversations/{started['conversation']['id']}"

    for other in others:
        assert await listed(other) == []
        for path in ("/v1/streams", f"/v1/streams?thread=conversation:{started['conversation']['id']}"):
            assert (await other.get(path)).json()["data"] == []
        for method in ("GET", "DELETE"):
            refused = await other.request(method, started["url"])
            assert (refused.status_code, error_of(refused)["code"]) == (404, "stream_not_found")
        for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("POST", "/messages")):
            body = {"title": "Mine", "content": "Mine?"} if method in ("PATCH", "POST") else None
            refused = await other.request(method, conversation + path, json=body)
            assert (refused.status_code, error_of(refused)["code"]) == (404, "conversation_not_found")
    assert (await others[0].get(f"/c/{started['conversation']['id']}")).status_code == 404
    assert [each["title"] for each in await listed(ada)] == ["A secret?"]
    assert len((await opened(ada, started))["messages"]) == 1
    assert [stream["id"] for stream in (await ada.get("/v1/streams")).json()["data"]] == [started["id"]]
    assert (await ada.delete(started["url"])).status_code == 204


async def test_a_page_from_elsewhere_cannot_use_the_cookie(serve: Start) -> None:
    client = await (await serve()).browser()
    elsewhere = ({"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"})
    unsafe = [(method, path) for method, path in ROUTES if method != "GET"]
    for (method, path), headers in product(
        [*unsafe, ("POST", "/v1/streams"), ("POST", "/v1/chat/completions")], elsewhere
    ):
        # It is refused before its body was read, after which the server closes the connection.
        headers = {**headers, "Connection": "close"}
        refused = await client.request(method, path, json={"content": QUESTION, "title": "A title"}, headers=headers)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "origin_denied")
    origin = {"Origin": str(client.base_url).rstrip("/")}
    own = await client.post("/conversations", json={"content": QUESTION}, headers=origin)
    assert own.status_code == 201


BAD = {
    "not JSON": (b"When?", "application/json", 400, "invalid_json"),
    "nothing": (b"", "application/json", 400, "invalid_json"),
    "bad UTF-8": (b'{"content": "\xff"}', "application/json", 400, "invalid_json"),
    "nested without end": (b"[" * 100_000 + b"]" * 100_000, "application/json", 400, "invalid_json"),
    "a list": (b'["When?"]', "application/json", 400, "invalid_request"),
    "null": (b"null", "application/json", 400, "invalid_request"),
    "no content": (b'{"model": "sim"}', "application/json", 400, "invalid_request"),
    "content null": (b'{"content": null}', "application/json", 400, "invalid_request"),
    "content a number": (b'{"content": 7}', "application/json", 400, "invalid_request"),
    "content an object": (b'{"content": {"text": "When?"}}', "application/json", 400, "invalid_request"),
    "content blank": (b'{"content": " \\n"}', "application/json", 400, "invalid_request"),
    "content too long": (b'{"content": "%s"}' % (b"x" * 20_001), "application/json", 413, "request_too_large"),
    "model a number": (b'{"content": "When?", "model": 7}', "application/json", 400, "invalid_request"),
    "model a list": (b'{"content": "When?", "model": ["sim"]}', "application/json", 400, "invalid_request"),
    "text": (b'{"content": "When?"}', "text/plain", 415, "unsupported_media_type"),
    "a form": (b"content=When", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    "no type": (b'{"content": "When?"}', "", 415, "unsupported_media_type"),
}


async def test_a_bad_question_is_refused_clearly_and_leaves_nothing_behind(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    client = await (await serve()).browser()
    started = await ask(client, QUESTION)
    before = await opened(client, started)
    for path in ("/conversations", f"/conversations/{started['conversation']['id']}/messages"):
        for case, (data, kind, status, code) in BAD.items():
            refused = await client.post(path, content=data, headers={"Content-Type": kind} if kind else {})
            assert (refused.status_code, error_of(refused)["code"]) == (status, code), case
            assert error_of(refused)["user_message"].endswith("."), case
    assert (await opened(client, started))["messages"] == before["messages"]
    assert len(await listed(client)) == 1
    assert [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


async def test_a_bad_title_or_conversation_is_refused_clearly(serve: Start) -> None:
    client = await (await serve()).browser()
    path = f"/conversations/{(await ask(client, QUESTION))['conversation']['id']}"
    for title, status in ((None, 400), (7, 400), ("", 400), (" ", 400), (["a"], 400), ("x" * 201, 413)):
        refused = await client.patch(path, json={"title": title})
        assert (refused.status_code, error_of(refused)["param"]) == (status, "title")
    for unknown in ("1", "x" * 1000, "%00", "%F0%9F%98%80", "' OR 1=1 --"):
        for method, rest in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/messages")):
            body = {"title": "Another", "content": "Yes?"} if method in ("PATCH", "POST") else None
            refused = await client.request(method, f"/conversations/{unknown}{rest}", json=body)
            assert (refused.status_code, error_of(refused)["code"]) == (404, "conversation_not_found"), unknown
    assert [each["title"] for each in await listed(client)] == [QUESTION]


# Its API and its environment ----------------------------------------------------------------------------------------


async def test_the_openai_sdk_streams_with_the_token(start_process: Start) -> None:
    example = await start_process(**TOKEN)
    assert f"OpenAI-compatible API: {example.url}/v1 with EXAMPLE_TOKEN as the key" in example.welcome
    body = {"model": "sim-fast", "messages": [{"role": "user", "content": QUESTION}]}
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        AsyncOpenAI(base_url=f"{example.url}/v1", api_key="token", max_retries=0, http_client=http) as sdk,
    ):
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**body, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer(body)
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert "handbook" in [model.id async for model in sdk.models.list()]


async def test_without_the_token_the_api_is_closed(serve: Start) -> None:
    body = {"model": "sim-fast", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    for environ in ({}, TOKEN):
        client = await (await serve(**environ)).client()
        for credentials in ("", "Bearer", "Bearer other", "Basic dG9rZW46"):
            headers = {"Authorization": credentials, "Connection": "close"}
            refused = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")


async def test_the_address_and_the_model_are_taken_from_the_environment(start_process: Start) -> None:
    async with serve_simulator(tokens_per_second=0, first_token_delay=0, api_key="sk-1") as simulator:
        example = await start_process(
            OPENAI_BASE_URL=simulator.base_url, OPENAI_API_KEY="sk-1", OPENAI_MODEL="sim-length-30", **TOKEN
        )
        assert "simulator" not in example.welcome
        client = await example.browser()
        page = (await client.get("/")).text
        assert 'id="simulated"' not in page
        assert "sim-length-30" in page
        assert f"Answers from {httpx.URL(simulator.base_url).netloc.decode()}." in page

        started = await ask(client, QUESTION)
        asked = {"model": "sim-length-30", "messages": [{"role": "user", "content": QUESTION}]}
        assert (await opened(client, started))["messages"][1]["content"] == answer(asked)
        (recorded,) = simulator.counters.requests
        assert (recorded.model, recorded.stream, recorded.outcome) == ("sim-length-30", True, "finished")

        refused = await client.post("/conversations", json={"model": "sim-long", "content": QUESTION})
        assert len(await listed(client)) == 1
        assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")
        assert len(simulator.counters.requests) == 1


# Several processes on one log ----------------------------------------------------------------------------------------


@pytest.fixture(params=["SQLite", "Redis"])
def log_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a log for several processes."""
    if request.param == "SQLite":
        return f"sqlite:///{tmp_path / 'streams.db'}"
    return f"redis+unix://{request.getfixturevalue('redis_server')}"


@pytest.fixture
async def start_two(start_process: Start, log_address: str) -> tuple[Started, Started]:
    """Two processes of the example on one log, which soon notice if the other one dies."""
    environ = {"EXAMPLE_SECRET_KEY": "the same", "QUART_OPENAI_SSE_LOG_LEASE": "1"}
    one, two = [await start_process("--log", log_address, **environ) for _ in range(2)]
    return one, two


async def test_an_answer_is_followed_and_stopped_at_another_process(start_two: tuple[Started, Started]) -> None:
    one, two = start_two
    here = await one.browser()
    there = await two.client(cookies=here.cookies)
    started = (await here.post("/conversations", json={"model": "sim-long", "content": "Stop?"})).json()
    assert (await opened(there, started))["answering"] == {"id": started["id"], "url": started["url"]}
    assert (await there.post(f"/conversations/{started['conversation']['id']}/messages", json=ASKED)).status_code == 409
    async with here.stream("GET", started["url"]) as mine, there.stream("GET", started["url"]) as other:
        bodies = [mine.aiter_raw(), other.aiter_raw()]
        beginnings = [await _first_words(body) for body in bodies]
        assert (await there.delete(started["url"])).status_code == 204
        seen = [await _read(beginning, rest) for beginning, rest in zip(beginnings, bodies, strict=True)]
    assert [each.outcome for each in seen] == ["stopped", "stopped"]
    assert seen[0].text == seen[1].text
    kept = (await opened(there, started))["messages"]
    assert [(message["role"], message["outcome"]) for message in kept] == [("user", ""), ("assistant", "stopped")]
    assert kept[1]["content"] == seen[0].text


async def test_an_answer_whose_process_was_killed_fails_and_is_stored(start_two: tuple[Started, Started]) -> None:
    one, two = start_two
    here = await one.browser()
    there = await two.client(cookies=here.cookies)
    started = (await here.post("/conversations", json={"model": "sim-long", "content": "Cut?"})).json()
    async with there.stream("GET", started["url"]) as response:
        body = response.aiter_raw()
        beginning = await _first_words(body)
        one.process.kill()
        seen = await _read(beginning, body)
    assert seen.outcome == "failed"
    assert seen.error is not None
    assert seen.error["code"] == "producer_lost"
    conversation = await opened(there, started)
    assert conversation["answering"] is None
    kept = conversation["messages"][1]
    assert (kept["outcome"], kept["note"]) == ("failed", seen.error["user_message"])
    assert kept["content"] == seen.text


# Its end ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command in this process, where it is to end before it serves."""

    def run_here(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["example_app", *arguments])
        try:
            status: Any = main()
        except SystemExit as leaving:
            status = leaving.code
        return Ended(status, *capsys.readouterr())

    return run_here


def test_the_help_says_what_it_honours(run_here: Callable[..., Ended]) -> None:
    status, output, errors = run_here("--help")
    assert (status, errors) == (0, "")
    names = (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_MODEL",
        "EXAMPLE_TOKEN",
        "--host",
        "--port",
        "--drain-timeout",
        "--database",
        "EXAMPLE_DATABASE",
        "--log",
        "QUART_OPENAI_SSE_LOG",
    )
    assert [name for name in names if name not in output] == []


@pytest.mark.parametrize(
    ("host", "environ", "warned"),
    [
        ("0.0.0.0", {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, True),
        ("0.0.0.0", {"QUART_OPENAI_SSE_API_KEY": "sk-x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, True),
        ("0.0.0.0", {}, False),
        ("0.0.0.0", {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, False),
        ("localhost", {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, False),
    ],
    ids=["OpenAI's key", "the extension's key", "the simulator", "no key", "this machine only"],
)
@pytest.mark.slow
async def test_an_address_that_others_reach_with_a_key_is_warned_of(
    tmp_path: Path, host: str, environ: dict[str, str], warned: bool
) -> None:
    environ = {"EXAMPLE_DATABASE": str(tmp_path / "chat.db"), **environ}
    async with run("--host", host, "--port", "0", **environ) as process:
        assert "Chat: http://" in await _line(process)
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    told = [line for line in errors.decode().splitlines() if line.startswith("Warning: ")]
    assert len(told) == warned
    for line in told:
        assert re.match(r"Warning: other machines can reach 0\.0\.0\.0:\d+\. ", line)
        assert next(name for name in environ if name.endswith("API_KEY")) in line
        assert "sk-x" not in line


def test_a_taken_port_is_said_in_a_sentence(run_here: Callable[..., Ended]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_here("--port", str(port))
    assert ended == (1, "", f"Can't listen on 127.0.0.1 port {port}: Address already in use. Try --port.\n")


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--host", "203.0.113.1")], ids=["port", "host"])
def test_an_address_that_cannot_be_had_is_said_in_a_sentence(
    arguments: tuple[str, str], run_here: Callable[..., Ended]
) -> None:
    status, output, errors = run_here(*arguments)
    assert (status, output) == (1, "")
    assert re.fullmatch(r"Can't listen on \S+ port \d+: [^\n.]+\. Try --port\.\n", errors)


def test_a_database_that_cannot_be_had_is_said_in_a_sentence(run_here: Callable[..., Ended], tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.db"
    nonsense.write_bytes(b"nonsense" * 1000)
    for file in (nonsense, nonsense / "chat.db", tmp_path):
        status, output, errors = run_here("--port", "0", "--database", str(file))
        assert (status, output) == (1, "")
        last = errors.splitlines()[-1]
        assert re.fullmatch(rf"Can't keep conversations in {re.escape(str(file))}: [^\n.]+\. Try --database\.", last)
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("streams.db", "OPENAI_SSE_LOG must begin with one of memory://, sqlite://, redis://"),
        ("sqlite://streams.db", "OPENAI_SSE_LOG must name a file"),
    ],
    ids=["no address", "no file"],
)
def test_a_log_that_cannot_be_had_is_said_in_a_sentence(
    run_here: Callable[..., Ended], tmp_path: Path, address: str, words: str
) -> None:
    status, output, errors = run_here("--port", "0", "--database", str(tmp_path / "chat.db"), "--log", address)
    assert (status, output) == (1, "")
    assert errors.splitlines()[-1].startswith(f"Can't start: {words}")


def test_a_log_that_shows_to_be_unusable_at_the_start_is_said_in_a_sentence(
    run_here: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is a text, and no database at all.\n" * 9)
    status, _, errors = run_here("--port", "0", "--database", str(tmp_path / "chat.db"), "--log", f"sqlite:///{path}")
    assert status == 1
    assert errors.splitlines()[-1] == f"Can't start: {path} is not an SQLite database."
    assert "Traceback" not in errors


SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@SIGNALS
async def test_a_long_stream_is_told_of_the_shutdown_in_both_formats(
    start_process: Start, number: signal.Signals
) -> None:
    example = await start_process("--drain-timeout", "0.3", **TOKEN)
    client = await example.client(headers=BEARER)
    body = {"model": "sim-long", "messages": [{"role": "user", "content": QUESTION}]}
    started = (await client.post("/v1/streams", json=body)).json()
    streams = [
        client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}),
        client.stream("GET", started["url"]),
        client.stream("GET", started["url"], params={"format": "openai"}),
    ]
    async with AsyncExitStack() as stack:
        bodies = [(await stack.enter_async_context(stream)).aiter_raw() for stream in streams]
        beginnings = [await anext(body) for body in bodies]
        assert all(beginnings)
        example.process.send_signal(number)
        for beginning, rest in zip(beginnings, bodies, strict=True):
            seen = await _read(beginning, rest)
            assert seen.outcome == "failed"
            assert seen.error is not None
            assert seen.error["code"] == "server_shutdown"
            assert seen.text
            assert answer(body).startswith(seen.text)
        # The connections stay open, as a browser's would.
        assert (await example.ended())[0] == 0


@SIGNALS
async def test_a_short_stream_ends_completely_meanwhile(start_process: Start, number: signal.Signals) -> None:
    example = await start_process("--drain-timeout", "20", **TOKEN)
    client = await example.client(headers=BEARER)
    body = {"model": "sim-length-30", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        rest = response.aiter_raw()
        beginning = await anext(rest)
        example.process.send_signal(number)
        seen = await _read(beginning, rest)
    assert (seen.outcome, seen.text) == ("completed", answer(body))
    assert (await example.ended())[0] == 0


@SIGNALS
async def test_an_idle_server_ends_quietly_though_pages_are_open(start_process: Start, number: signal.Signals) -> None:
    example = await start_process()
    client = await example.browser()
    await client.get("/")
    example.process.send_signal(number)
    status, errors = await example.ended()
    assert status == 0
    assert [line for line in errors.splitlines() if " INFO " not in line] == []
    assert "answers come from the built-in simulator" in example.welcome
    assert "EXAMPLE_TOKEN" not in example.welcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_server_that_drains_starts_nothing_new_once_its_grace_is_over(
    start_process: Start, number: signal.Signals
) -> None:
    example = await start_process("--drain-timeout", "20", **TOKEN)
    client = await example.client(headers=BEARER)
    body = {"model": "sim-long", "messages": [{"role": "user", "content": QUESTION}]}
    started = (await client.post("/v1/streams", json=body)).json()
    example.process.send_signal(number)
    while (await client.get("/v1/ready")).status_code == 200:
        pass
    asked = {**body, "model": "sim-fast"}
    answers = [await client.post("/v1/chat/completions", json=asked)]
    while answers[-1].status_code == 200:
        answers.append(await client.post("/v1/chat/completions", json=asked))
    assert (answers[-1].status_code, error_of(answers[-1])["code"]) == (503, "draining")
    assert (len(answers) > 1) == (number == signal.SIGTERM)  # which a load balancer may notice later
    assert (await client.delete(started["url"])).status_code == 204
    assert (await example.ended())[0] == 0


async def ask(
    client: httpx.AsyncClient, question: str, after: dict[str, Any] | None = None, *, model: str | None = None
) -> dict[str, Any]:
    """Asks on the page, in a new conversation or *after* another question, and waits for the answer."""
    path = f"/conversations/{after['conversation']['id']}/messages" if after else "/conversations"
    asked = await client.post(path, json={"content": question, "model": model})
    assert asked.status_code == 201
    started: dict[str, Any] = asked.json()
    assert (await read((await client.get(started["url"])).content)).outcome == "completed"
    return started


async def listed(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The list of conversations."""
    data: list[dict[str, Any]] = (await client.get("/conversations")).json()["data"]
    return data


async def opened(client: httpx.AsyncClient, started: dict[str, Any]) -> dict[str, Any]:
    """The conversation in which something was asked."""
    conversation: dict[str, Any] = (await client.get(f"/conversations/{started['conversation']['id']}")).json()
    return conversation


async def _first_words(data: AsyncIterator[bytes]) -> bytes:
    """What comes until the model has said something."""
    beginning = b""
    while b"event: delta" not in beginning:
        beginning += await anext(data)
    return beginning


async def _read(beginning: bytes, rest: AsyncIterator[bytes]) -> ReadStream:
    return await read(beginning + b"".join([data async for data in rest]))
