"""The old Flask app with streaming beside it, over HTTP: in one process, and in two."""

from __future__ import annotations

import asyncio
import html
import os
import re
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import async_playwright, expect

from quart_openai_sse.simulator import Simulator, answer
from quart_openai_sse.testing import read

ROOT = Path(__file__).parent.parent
QUESTION = "How far is the moon?"
CLOSE = {"Connection": "close"}  # what is refused before its body was read can't keep it
BODY = {"model": "sim", "messages": [{"role": "user", "content": QUESTION}]}

Start = Callable[..., Any]


@pytest.fixture
async def start(simulator: Simulator, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `python -m example_app.beside_flask`, and gives the process and its address."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, model: str = "sim", **environ: str) -> tuple[Process, str]:
            environ = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_MODEL": model, **environ}
            command = ("-m", "example_app.beside_flask", "--port", "0", "--database", str(tmp_path / "chat.db"))
            process = await stack.enter_async_context(run(*command, *arguments, **environ))
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            if not line:
                pytest.fail((await process.communicate())[1].decode())
            (address,) = re.findall(r"http://127\.0\.0\.1:\d+(?=/ )", line)
            return process, address

        yield start


@asynccontextmanager
async def run(*command: str, **environ: str) -> AsyncIterator[Process]:
    """A Python program in an environment of its own, killed if it outlives the block."""
    environ = {"PATH": os.defpath, **environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env=environ, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def client_of(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=address, timeout=30, trust_env=False)


async def log_in(client: httpx.AsyncClient, name: str = "ada", password: str = "lovelace") -> None:
    response = await client.post("/login", data={"username": name, "password": password})
    assert (response.status_code, response.headers["location"]) == (303, "/")


def shown(page: httpx.Response) -> list[tuple[str, str]]:
    """The stored messages on the old app's page: whose, and what."""
    assert page.status_code == 200
    found = re.findall(r'data-role="(\w+)".*?<p class="text">(.*?)</p>', page.text, re.S)
    return [(role, html.unescape(text)) for role, text in found]


async def test_an_answer_is_streamed_beside_the_old_app_and_stored_by_its_models(start: Start) -> None:
    _, address = await start()
    async with client_of(address) as client:
        assert (await client.get("/")).headers["location"].startswith("/login")
        await log_in(client)
        assert shown(await client.get("/")) == []

        started = await client.post("/ask", json={"content": QUESTION})
        assert started.status_code == 201
        url = started.json()["url"]
        assert shown(await client.get("/"))[0] == ("user", QUESTION)
        stream = await read((await client.get(url)).content)
        assert (stream.outcome, stream.text) == ("completed", answer(BODY))
        assert shown(await client.get("/")) == [("user", QUESTION), ("assistant", stream.text)]

        assert (await client.post("/logout")).headers["location"] == "/login"
        assert (await client.get(url)).status_code == 401
        assert (await client.post("/ask", json={"content": QUESTION}, headers=CLOSE)).status_code == 401
        await log_in(client, "grace", "hopper")
        assert (await client.get(url)).status_code == 404
        assert shown(await client.get("/")) == []


async def test_who_logs_out_leaves_no_running_answer_to_the_next_user(start: Start) -> None:
    _, address = await start(model="sim-long-rate-20")
    async with client_of(address) as client:
        await log_in(client)
        url = (await client.post("/ask", json={"content": QUESTION})).json()["url"]
        assert len((await client.get("/v1/streams")).json()["data"]) == 1
        await client.post("/logout")
        assert (await client.get(url)).status_code == 401
        await log_in(client, "grace", "hopper")
        assert (await client.get(url)).status_code == 404
        assert (await client.get("/v1/streams")).json()["data"] == []
        await client.delete(url)  # is nobody's, and changes nothing
        await client.post("/logout")
        await log_in(client)
        assert len((await client.get("/v1/streams")).json()["data"]) == 1


async def test_what_was_said_before_is_asked_with_the_question(start: Start, simulator: Simulator) -> None:
    _, address = await start()
    async with client_of(address) as client:
        await log_in(client)
        texts = []
        for question in ("One?", "Two?"):
            started = (await client.post("/ask", json={"content": question})).json()
            texts.append((await read((await client.get(started["url"])).content)).text)
        said = [("user", "One?"), ("assistant", texts[0]), ("user", "Two?"), ("assistant", texts[1])]
        assert shown(await client.get("/")) == said
    messages = [{"role": role, "content": content} for role, content in said[:3]]
    assert texts[1] == answer({"model": "sim", "messages": messages})


async def test_a_user_whom_the_old_app_has_locked_out_is_nobody(start: Start, tmp_path: Path) -> None:
    _, address = await start()
    async with client_of(address) as client:
        await log_in(client)
        assert (await client.get("/v1/streams")).status_code == 200
        with sqlite3.connect(tmp_path / "chat.db") as database:
            database.execute("UPDATE users SET locked = 1 WHERE name = 'ada'")
        database.close()
        assert (await client.get("/v1/streams")).status_code == 401


async def test_a_page_of_another_origin_and_a_bad_question_leave_nothing_behind(start: Start) -> None:
    _, address = await start()
    async with client_of(address) as client:
        await log_in(client)
        foreign = {"Origin": "https://evil.example", **CLOSE}
        assert (await client.post("/ask", json={"content": QUESTION}, headers=foreign)).status_code == 403
        assert (await client.post("/ask", json={"content": " "})).status_code == 400
        assert (await client.post("/ask", data={"content": QUESTION})).status_code == 415
        assert shown(await client.get("/")) == []


async def test_a_question_that_is_refused_is_not_stored(start: Start) -> None:
    process, address = await start("--drain-timeout", "20", model="sim-long-rate-20")
    async with client_of(address) as client:
        await log_in(client)
        url = (await client.post("/ask", json={"content": QUESTION})).json()["url"]
        process.terminate()
        while (await client.get("/v1/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await client.post("/ask", json={"content": "And the sun?"})).status_code == 503
        assert shown(await client.get("/")) == [("user", QUESTION)]
        assert (await client.delete(url)).status_code == 204
    assert await process.wait() == 0


async def test_the_old_pages_hold_no_script_but_files_and_a_policy_says_so(start: Start) -> None:
    _, address = await start()
    async with client_of(address) as client:
        login = await client.get("/login")
        await log_in(client)
        for page in (login, await client.get("/")):
            assert page.headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'none'"
            assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son\w+=", page.text) == []
            for file in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
                assert (await client.get(file)).status_code == 200
        assert (await client.get("/v1/client.js")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_the_end_of_the_process_is_an_end_of_the_stream_and_is_stored(
    start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    process, address = await start("--drain-timeout", "0.3", model="sim-long-rate-20")
    async with client_of(address) as client:
        await log_in(client)
        started = (await client.post("/ask", json={"content": QUESTION})).json()
        async with client.stream("GET", started["url"]) as response:
            pieces = response.aiter_raw()
            first = await anext(pieces)
            process.send_signal(number)
            stream = await read(first + b"".join([piece async for piece in pieces]))
        assert stream.error is not None
        assert (stream.outcome, stream.error["code"]) == ("failed", "server_shutdown")
        _, errors = await process.communicate()
        assert (process.returncode, "Traceback" in errors.decode()) == (0, False)
    with sqlite3.connect(tmp_path / "chat.db") as database:
        rows = database.execute("SELECT role, outcome FROM messages ORDER BY id").fetchall()
    database.close()
    assert rows == [("user", ""), ("assistant", "failed")]


async def test_in_two_processes_the_cookie_and_the_database_are_enough(start: Start, tmp_path: Path) -> None:
    secret = {"EXAMPLE_SECRET_KEY": "the same for both", "EXAMPLE_DATABASE": str(tmp_path / "chat.db")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        old_address = f"127.0.0.1:{free.getsockname()[1]}"
    _, address = await start("--only-streams", **secret)
    command = ("-m", "flask", "--app", "example_app.flask_app", "run", "--port", old_address.rpartition(":")[2])
    async with (
        run(*command, **secret),
        httpx.AsyncClient(
            base_url=f"http://{old_address}", transport=httpx.AsyncHTTPTransport(retries=8), timeout=30
        ) as old,
        client_of(address) as new,
    ):
        await log_in(old)
        assert (await new.post("/ask", json={"content": QUESTION}, headers=CLOSE)).status_code == 401
        new.cookies = old.cookies  # one origin, to a browser: the proxy's
        started = (await new.post("/ask", json={"content": QUESTION})).json()
        stream = await read((await new.get(started["url"])).content)
        assert shown(await old.get("/")) == [("user", QUESTION), ("assistant", stream.text)]
        assert (await new.get("/login")).status_code == 404
        await old.post("/logout")
        new.cookies = old.cookies
        assert (await new.get(started["url"])).status_code == 401


@pytest.mark.browser
async def test_in_a_browser_an_answer_survives_a_reload_and_is_gone_for_the_next_user(
    start: Start, chromium: str
) -> None:
    _, address = await start(model="sim-length-60-rate-20")
    expected = answer({**BODY, "model": "sim-length-60-rate-20"})
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        await page.goto(f"{address}/")
        await page.fill("#username", "ada")
        await page.fill("#password", "lovelace")
        await page.click("#login")
        await page.fill("#question", QUESTION)
        await page.click("#send")
        text = page.locator(".message[data-role=assistant] .text")
        await expect(text).not_to_be_empty()
        await page.reload()
        await expect(page.locator("#stop")).to_be_visible()  # it goes on
        await expect(page.locator(".message[data-outcome=completed]")).to_have_count(1, timeout=30_000)
        assert await text.text_content() == expected
        await page.reload()
        assert await text.text_content() == expected
        await page.click("#logout")
        await page.fill("#username", "grace")
        await page.fill("#password", "hopper")
        await page.click("#login")
        await expect(page.locator("#user")).to_have_text("grace")
        await expect(page.locator(".message")).to_have_count(0)
        await browser.close()
    # The browser looks for an icon, which the old app does not have.
    assert [line for line in complaints if "404" not in line] == []
