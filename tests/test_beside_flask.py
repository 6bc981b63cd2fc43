"""The old Flask app with streaming beside it: in one process, and in two behind nginx with the file that is shipped."""

from __future__ import annotations

import asyncio
import html
import os
import re
import shlex
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from flask import Flask
from playwright.async_api import Browser, BrowserContext, Locator, Page, Route, expect
from sqlalchemy.pool import QueuePool

from example_app.beside_flask import PREFIXES, Models, create_streaming_app, main
from example_app.flask_app import create_app as create_flask_app
from example_app.flask_app import models
from example_app.flask_app.models import db
from quart_openai_sse.flask import mount
from quart_openai_sse.simulator import Simulator, answer
from quart_openai_sse.testing import read, serve_app, simulator_thread
from tests.machine import nginx_path
from tests.matrix.servers import free_port
from tests.test_docs import blocks

ROOT = Path(__file__).parent.parent
NGINX_CONF = ROOT / "example_app/deploy/nginx.conf"
QUESTION = "How far is the moon?"
CLOSE = {"Connection": "close"}  # what is refused before its body was read can't keep it
BODY = {"model": "sim", "messages": [{"role": "user", "content": QUESTION}]}
SECRETS = {"EXAMPLE_SECRET_KEY": "the same for both", "EXAMPLE_SERVICE_TOKEN": "s3rvice"}

Start = Callable[..., Any]

expect.set_options(timeout=30_000)


# Processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def start_process(simulator: Simulator, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `python -m example_app.beside_flask`, and gives the process and its address."""
    async with AsyncExitStack() as stack:

        async def start_process(*arguments: str, model: str = "sim", **environ: str) -> tuple[Process, str]:
            environ = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_MODEL": model, **environ}
            command = ("-m", "example_app.beside_flask", "--port", "0", "--database", str(tmp_path / "chat.db"))
            process = await stack.enter_async_context(run(sys.executable, *command, *arguments, **environ))
            return process, await welcomed(process, "Streams" if "--only-streams" in arguments else "Chat")

        yield start_process


@pytest.fixture
async def serve(simulator: Simulator, tmp_path: Path) -> AsyncIterator[Start]:
    """Serves both apps in this process, as the command does in one of its own, and gives their address."""
    async with AsyncExitStack() as stack:

        async def serve(*, model: str = "sim", **settings: Any) -> str:
            flask_app = create_flask_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/chat.db", SERVICE_TOKEN="flask")
            stack.callback(dispose_of, flask_app)
            settings = {"OPENAI_SSE_BASE_URL": simulator.base_url, "OPENAI_SSE_MODEL": model, **settings}
            app = mount(flask_app, create_streaming_app(flask_app, **settings), prefix=PREFIXES)
            address = "http://" + await stack.enter_async_context(serve_app(app))
            flask_app.config["STREAMS_URL"] = address
            return address

        yield serve


def dispose_of(flask_app: Flask) -> None:
    """Closes the connections to its database."""
    with flask_app.app_context():
        db.engine.dispose()


@asynccontextmanager
async def run(
    *command: str, end: signal.Signals = signal.SIGKILL, cwd: Path = ROOT, **environ: str
) -> AsyncIterator[Process]:
    """A program in an environment of its own, ended by *end* if it outlives the block."""
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "PYTHONPATH": str(ROOT), **environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environ,
        stdout=PIPE,
        stderr=PIPE,
        limit=16 << 20,  # nobody reads stderr before the end, and a process blocks when its buffer is full
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(end)
            await process.communicate()


def test_behind_a_proxy_wrong_passwords_are_counted_for_the_addresses_that_it_names(tmp_path: Path) -> None:
    flask_app = create_flask_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/chat.db", PROXIES=1)
    client, tries = flask_app.test_client(), flask_app.extensions["login_tries"]
    for number in range(50):
        tries.check(f"user{number}", "198.51.100.1", is_right=lambda: False)
    for address, status in (("198.51.100.1", 429), ("192.0.2.1", 303)):
        said = {"X-Forwarded-For": f"203.0.113.1, {address}"}  # the client may have sent the first one itself
        response = client.post("/login", data={"username": "ada", "password": "lovelace"}, headers=said)
        assert response.status_code == status
    dispose_of(flask_app)


def test_a_password_is_compared_whether_the_name_exists_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is what takes time, and a stranger could measure it."""
    compared: list[str] = []

    def check_password_hash(_: str, password: str) -> bool:
        compared.append(password)
        return True

    monkeypatch.setattr(models, "check_password_hash", check_password_hash)
    flask_app = create_flask_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/chat.db")
    client = flask_app.test_client()
    for name, status in (("ada", 303), ("nobody", 401)):
        assert client.post("/login", data={"username": name, "password": f"of {name}"}).status_code == status
    assert compared == ["of ada", "of nobody"]
    dispose_of(flask_app)


SLOW = "sim-length-80-rate-12"  # an answer of about seven seconds


@dataclass(frozen=True)
class Site:
    """Both apps at one address."""

    address: str
    folder: Path
    """Where the database is."""


@pytest.fixture(scope="module", params=["one process", "two processes behind nginx"])
def running_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both apps in each of the shapes, for all tests of this module; answers take their time."""
    folder = tmp_path_factory.mktemp("site")
    with (
        simulator_thread(first_token_delay=0, tokens_per_second=0) as simulator,
        start_blocking_portal() as portal,
    ):
        upstream = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_MODEL": SLOW}
        if request.param == "one process":
            shape = beside_flask(folder, **upstream)
        else:
            shape = behind_nginx(nginx_path(), folder, **upstream)
        with portal.wrap_async_context_manager(shape) as address:
            yield Site(address, folder)


@pytest.fixture
def site(running_site: Site) -> Site:
    """The apps, in which nobody has said anything yet."""
    with database_in(running_site.folder) as database:
        database.execute("DELETE FROM messages")
    return running_site


@asynccontextmanager
async def beside_flask(folder: Path, **environ: str) -> AsyncIterator[str]:
    """`python -m example_app.beside_flask`, and its address."""
    command = ("-m", "example_app.beside_flask", "--port", "0", "--database", str(folder / "chat.db"))
    async with run(sys.executable, *command, **environ) as process:
        yield await welcomed(process)


async def welcomed(process: Process, word: str = "Chat") -> str:
    """The address in the first line that a process prints."""
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    if not line:
        pytest.fail((await process.communicate())[1].decode())
    assert line.startswith(f"{word}: ")
    address: str = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
    return address


@asynccontextmanager
async def behind_nginx(nginx: str, folder: Path, **environ: str) -> AsyncIterator[str]:
    """What the head of the shipped nginx.conf says, and nginx with that file; but for the addresses and secrets."""
    conf, port = substituted(NGINX_CONF.read_text("utf-8"), {"/srv/chat.db": str(folder / "chat.db")})
    *exports, gunicorn, streams = (shlex.split(line) for line in re.findall(r"^#   (\w.*)$", conf, re.M))
    for export, *pairs in exports:
        assert export == "export"
        environ |= dict(pair.split("=", 1) for pair in pairs)
    assert {name for name, value in environ.items() if value == "..."} == set(SECRETS)
    environ |= SECRETS
    writes = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    (folder / "nginx.conf").write_text(conf.replace("http {", f"http {{ access_log off; {writes}"), "utf-8")
    main = "daemon off; master_process off; pid nginx.pid;"  # one process, of whoever runs the test
    async with (
        run(*gunicorn, end=signal.SIGQUIT, **environ) as pages,
        run(*streams, **environ) as streaming,
        run(nginx, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", main) as proxy,
    ):
        await answering(f"http://127.0.0.1:{port}", {"gunicorn": pages, "beside_flask": streaming, "nginx": proxy})
        yield f"http://127.0.0.1:{port}"


def substituted(conf: str, others: dict[str, str]) -> tuple[str, int]:
    """*conf* with free ports in place of its own, and the port of nginx itself."""
    old, streams, proxy = free_port(), free_port(), free_port()
    places = {"127.0.0.1:8000": f"127.0.0.1:{old}", "127.0.0.1:5000": f"127.0.0.1:{streams}"}
    places |= {"--port 5000": f"--port {streams}", "listen 8080;": f"listen 127.0.0.1:{proxy};", **others}
    for place, ours in places.items():
        assert place in conf
        conf = conf.replace(place, ours)
    return conf, proxy


async def answering(address: str, processes: dict[str, Process]) -> None:
    """Waits until both apps answer at *address*. Fails if one of the processes has ended."""
    async with client_of(address, retries=8) as client:
        for path in ("/login", "/v1/health"):
            while (await client.get(path)).status_code != 200:
                for name, process in processes.items():
                    if process.returncode is not None:
                        pytest.fail(f"{name}: {(await process.communicate())[1].decode()}")
                await asyncio.sleep(0.05)


# Over HTTP ----------------------------------------------------------------------------------------------------------


def client_of(address: str, *, retries: int = 0) -> httpx.AsyncClient:
    """A client of its own cookies. *retries*: until a server listens."""
    return httpx.AsyncClient(base_url=address, transport=httpx.AsyncHTTPTransport(retries=retries), timeout=30)


async def log_in(client: httpx.AsyncClient, name: str = "ada", password: str = "lovelace") -> None:
    response = await client.post("/login", data={"username": name, "password": password})
    assert (response.status_code, response.headers["location"]) == (303, "/")


def shown(page: httpx.Response) -> list[tuple[str, str]]:
    """The stored messages on the old app's page: whose, and what."""
    assert page.status_code == 200
    found = re.findall(r'data-role="(\w+)".*?<p class="text">(.*?)</p>', page.text, re.S)
    return [(role, html.unescape(text)) for role, text in found]


@contextmanager
def database_in(folder: Path) -> Iterator[sqlite3.Connection]:
    """The old app's database, and at the end a commit."""
    with closing(sqlite3.connect(folder / "chat.db")) as database, database:
        yield database


def stored(folder: Path, columns: str) -> list[Any]:
    """What everybody said, as the old app keeps it."""
    with database_in(folder) as database:
        return database.execute(f"SELECT {columns} FROM messages ORDER BY id").fetchall()


def say(folder: Path, *said: tuple[str, str]) -> None:
    """Puts messages into ada's conversation."""
    with database_in(folder) as database:
        rows = [(role, content) for role, content in said]
        insert = (
            "INSERT INTO messages (user_id, role, content, outcome) SELECT id, ?, ?, '' FROM users WHERE name = 'ada'"
        )
        database.executemany(insert, rows)


async def test_an_answer_is_streamed_beside_the_old_app_and_stored_by_its_models(serve: Start) -> None:
    address = await serve()
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


async def test_who_logs_out_leaves_no_running_answer_to_the_next_user(serve: Start) -> None:
    address = await serve(model="sim-long-rate-20")
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


async def test_what_was_said_before_is_asked_with_the_question(serve: Start, simulator: Simulator) -> None:
    address = await serve()
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


async def test_a_user_whom_the_old_app_has_locked_out_is_nobody(serve: Start, tmp_path: Path) -> None:
    address = await serve()
    async with client_of(address) as client:
        await log_in(client)
        assert (await client.get("/v1/streams")).status_code == 200
        with database_in(tmp_path) as database:
            database.execute("UPDATE users SET locked = 1 WHERE name = 'ada'")
        assert (await client.get("/v1/streams")).status_code == 401


async def test_a_page_of_another_origin_and_a_bad_question_leave_nothing_behind(serve: Start) -> None:
    address = await serve()
    async with client_of(address) as client:
        await log_in(client)
        foreign = {"Origin": "https://evil.example", **CLOSE}
        assert (await client.post("/ask", json={"content": QUESTION}, headers=foreign)).status_code == 403
        assert (await client.post("/ask", json={"content": " "})).status_code == 400
        assert (await client.post("/ask", data={"content": QUESTION})).status_code == 415
        assert shown(await client.get("/")) == []


async def test_a_question_that_is_refused_is_not_stored(start_process: Start) -> None:
    process, address = await start_process("--drain-timeout", "20", model="sim-long-rate-20")
    async with client_of(address) as client:
        await log_in(client)
        url = (await client.post("/ask", json={"content": QUESTION})).json()["url"]
        process.send_signal(signal.SIGINT)  # which has no grace
        while (await client.get("/v1/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await client.post("/ask", json={"content": "And the sun?"})).status_code == 503
        assert shown(await client.get("/")) == [("user", QUESTION)]
        assert (await client.delete(url)).status_code == 204
    assert await process.wait() == 0


async def test_a_wrong_password_keeps_the_name_and_only_ten_are_looked_at(serve: Start) -> None:
    form = {"username": " Ada ", "password": "hopper"}
    async with client_of(await serve()) as client:
        pages = [await client.post("/login", data=form) for _ in range(11)]
        assert [page.status_code for page in pages] == [401] * 10 + [429]
        assert all(re.search(r'<input id="username"[^>]* value="Ada"', page.text) for page in pages)
        assert "Too many wrong passwords." in pages[-1].text
        assert 0 < int(pages[-1].headers["Retry-After"]) <= 300
        right = await client.post("/login", data={"username": "ada", "password": "lovelace"})
        assert right.status_code == 429
        await log_in(client, "grace", "hopper")


async def test_the_old_pages_hold_no_script_but_files_and_a_policy_says_so(serve: Start) -> None:
    address = await serve()
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
    start_process: Start, number: signal.Signals, tmp_path: Path
) -> None:
    process, address = await start_process("--drain-timeout", "0.3", model="sim-long-rate-20")
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
    assert stored(tmp_path, "role, outcome") == [("user", ""), ("assistant", "failed")]


async def test_in_two_processes_the_cookie_and_the_database_are_enough(start_process: Start, tmp_path: Path) -> None:
    secret = {**SECRETS, "EXAMPLE_DATABASE": str(tmp_path / "chat.db")}
    port = free_port()
    _, address = await start_process("--only-streams", **secret)
    command = ("flask", "--app", "example_app.flask_app", "run", "--port", str(port))
    async with (
        run(*command, **secret),
        client_of(f"http://127.0.0.1:{port}", retries=8) as old,
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


@pytest.fixture
def old_app(tmp_path: Path) -> Iterator[Flask]:
    """The Flask app in this process; its connections are closed at the end."""
    app = create_flask_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/chat.db")
    yield app
    dispose_of(app)


def test_an_id_that_is_no_number_is_no_user(old_app: Flask) -> None:
    models = Models(old_app)
    assert [models.has_user(each) for each in ("0f3a9c", "", "42.0", "1e3")] == [False] * 4


def test_no_connection_to_the_database_is_there_when_a_server_forks(old_app: Flask) -> None:
    with old_app.app_context():
        pool = db.engine.pool
        assert isinstance(pool, QueuePool)
        assert (pool.checkedin(), pool.checkedout()) == (0, 0)


@pytest.mark.slow
async def test_the_two_processes_of_the_page_are_one_app_to_a_user(simulator: Simulator, tmp_path: Path) -> None:
    page = blocks(ROOT / "docs/how-to/beside-flask.md")
    (old_app,) = (block.code for block in page if block.how == "run: app")
    (streams,) = (block.code for block in page if block.how == "run: script streams.py")
    assert len(list(filter(str.strip, streams.splitlines()))) == 14  # as the page says
    (tmp_path / "old_app.py").write_text(old_app, "utf-8")
    old_port, new_port = free_port(), free_port()
    hypercorn = ("hypercorn", "--bind", f"127.0.0.1:{new_port}", "streams:app")
    async with (
        run("flask", "--app", "old_app:flask_app", "run", "--port", str(old_port), cwd=tmp_path),
        client_of(f"http://127.0.0.1:{old_port}", retries=8) as old,
    ):
        assert (await old.post("/login")).status_code == 200  # and the tables are there
        (tmp_path / "streams.py").write_text(streams, "utf-8")
        upstream = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "any"}
        async with (
            run(*hypercorn, cwd=tmp_path, end=signal.SIGTERM, **upstream),  # it has a child, which ends with it
            client_of(f"http://127.0.0.1:{new_port}", retries=8) as new,
        ):
            assert (await new.get("/v1/streams")).status_code == 401
            new.cookies = old.cookies  # one origin, to a browser: the proxy's
            started = await new.post("/v1/streams", json={"messages": BODY["messages"]})
            stream = await read((await new.get(started.json()["url"])).content)
            assert stream.outcome == "completed"
            assert (await old.get("/")).text == stream.text


def test_a_database_that_cannot_be_had_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "missing" / "chat.db"
    monkeypatch.setattr(sys, "argv", ["beside_flask", "--database", str(database), "--port", "0"])
    assert main() == 1
    errors = capsys.readouterr().err
    assert errors.endswith(f"Can't keep conversations in {database}. Try --database.\n")
    assert "Traceback" not in errors


async def test_a_form_elsewhere_logs_nobody_in_or_out_of_the_old_app(serve: Start) -> None:
    address = await serve()
    async with client_of(address) as client:
        foreign = {"Origin": "https://evil.example"}
        for path in ("/login", "/logout"):
            refused = await client.post(path, data={"username": "grace", "password": "hopper"}, headers=foreign)
            assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        await log_in(client)


async def test_half_an_emoji_is_no_reason_to_fail(serve: Start) -> None:
    address = await serve()
    async with client_of(address) as client:
        await log_in(client)
        headers = {"Content-Type": "application/json"}
        asked = await client.post("/ask", content=b'{"content": "half \\ud83d"}', headers=headers)
        assert asked.status_code == 201
        await client.get(asked.json()["url"])
        assert [role for role, _ in shown(await client.get("/"))] == ["user", "assistant"]


def test_only_streams_is_refused_without_what_it_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((), ("--database", str(tmp_path / "chat.db"))):
        monkeypatch.setattr(sys, "argv", ["beside_flask", "--only-streams", *arguments, "--port", "0"])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "needs a database and EXAMPLE_SECRET_KEY" in capsys.readouterr().err


async def test_who_logs_out_is_kept_what_there_is_when_linger_has_passed(serve: Start, tmp_path: Path) -> None:
    address = await serve(model="sim-long-rate-20", OPENAI_SSE_LINGER=1)
    async with client_of(address) as client:
        await log_in(client)
        url = (await client.post("/ask", json={"content": QUESTION})).json()["url"]
        async with client.stream("GET", url) as response:
            await anext(response.aiter_raw())
            await client.post("/logout")
            assert stored(tmp_path, "role") == [("user",)]  # nothing is stopped while somebody reads
        async with asyncio.timeout(20):  # less than the linger of who sets none
            while len(stored(tmp_path, "role")) < 2:
                await asyncio.sleep(0.01)
        await log_in(client)
        page = await client.get("/")
    _, (role, text) = shown(page)
    assert (role, text != "", "This answer is not complete." in page.text) == ("assistant", True, True)
    assert stored(tmp_path, "role, outcome") == [("user", ""), ("assistant", "stopped")]


async def test_a_client_that_reads_nothing_does_not_keep_the_process_alive(
    start_process: Start, tmp_path: Path
) -> None:
    process, address = await start_process("--drain-timeout", "0")
    async with client_of(address) as client:
        await log_in(client)
        cookie = f"session={client.cookies['session']}"
    say(tmp_path, ("user", "x" * 30_000_000))  # more than two sockets take
    loop, url = asyncio.get_running_loop(), httpx.URL(address)
    with socket.create_connection((url.host, url.port)) as client_that_stalls:
        client_that_stalls.setblocking(False)
        request = f"GET / HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nCookie: {cookie}\r\n\r\n"
        await loop.sock_sendall(client_that_stalls, request.encode())
        assert await loop.sock_recv(client_that_stalls, 12) == b"HTTP/1.1 200"
        process.terminate()
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
    assert (process.returncode, "Traceback" in errors.decode()) == (0, False)


# On behalf of a user ------------------------------------------------------------------------------------------------

SUMMARISE = {"role": "user", "content": "Summarise what we have said so far."}
SAID = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Far."}]


def say_something(folder: Path) -> None:
    say(folder, *((message["role"], message["content"]) for message in SAID))


async def test_flask_starts_a_stream_for_its_user_who_reads_it_with_the_cookie(serve: Start, tmp_path: Path) -> None:
    address = await serve()
    async with client_of(address) as client:
        await log_in(client)
        say_something(tmp_path)
        page = await client.post("/summary", follow_redirects=True)
        (url,) = re.findall(r'data-stream="(/v1/streams/\w+)"', page.text)
        stream = await read((await client.get(url)).content)
        assert stream.text == answer({"model": "sim", "messages": [*SAID, SUMMARISE]})
        await client.post("/logout")
        assert (await client.get(url)).status_code == 401
        await log_in(client, "grace", "hopper")
        assert (await client.get(url)).status_code == 404
    assert len(stored(tmp_path, "role")) == 2  # it is no part of the conversation


async def test_nobody_acts_on_behalf_of_a_user_without_the_right(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_TOKEN", "api")
    address = await serve()
    for_ada = {"X-On-Behalf-Of": "1", **CLOSE}
    async with client_of(address) as client:
        for path in ("/v1/streams", "/ask"):
            api = {**for_ada, "Authorization": "Bearer api"}
            assert (await client.post(path, json={**BODY, "content": QUESTION}, headers=api)).status_code == 403
        await log_in(client, "grace", "hopper")
        assert (await client.post("/v1/streams", json=BODY, headers=for_ada)).status_code == 401
        await log_in(client)
        assert (await client.get("/v1/streams")).json()["data"] == []


async def test_a_service_has_no_conversation(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_TOKEN", "api")
    address = await serve()
    async with client_of(address) as client:
        api = {"Authorization": "Bearer api"}
        assert (await client.post("/ask", json={"content": QUESTION}, headers=api)).status_code == 403


@pytest.mark.parametrize("streams_url", ["http://127.0.0.1:9", ""])
def test_without_the_streaming_app_there_is_no_summary_but_a_sentence(streams_url: str, old_app: Flask) -> None:
    old_app.config["STREAMS_URL"] = streams_url
    client = old_app.test_client()
    client.post("/login", data={"username": "ada", "password": "lovelace"})
    refused = client.post("/summary")
    assert (refused.status_code, "Please try again." in refused.text) == (503, True)


# In both shapes -----------------------------------------------------------------------------------------------------


async def test_a_browser_that_says_no_more_than_its_origin_may_ask_from_the_same(site: Site) -> None:
    async with client_of(site.address) as client:
        await log_in(client)
        for origin, status in (("http://127.0.0.1:9", 403), (site.address, 201)):
            headers = {"Origin": origin, **CLOSE}
            asked = await client.post("/ask", json={"content": QUESTION}, headers=headers)
            assert asked.status_code == status
        url = asked.json()["url"]
        await client.delete(url)
        await client.get(url)  # to its end, which is stored by then


# In a browser -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def page_at(address: str, browser: Browser) -> AsyncIterator[Page]:
    """A page at *address*. Any warning or error on its console fails the test, with two exceptions.

    The old app has no icon. A page that the browser goes back to after a log-out may request its stream once more,
    and that request is refused.
    """
    complaints: list[str] = []
    page = await browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(f"{line.type}: {line.text} ({line.location['url']})"))
    try:
        await page.goto(address)
        yield page
    finally:
        await page.context.close()
    refused = ("error: Failed to load resource:", "/v1/streams/")
    told = ("log:", "info:", "debug:")  # such as that a field has the focus already, and autofocus does nothing
    serious = [
        line
        for line in complaints
        if not line.startswith(told) and "/favicon.ico" not in line and not all(part in line for part in refused)
    ]
    assert serious == [], serious


async def log_in_at(page: Page, name: str, password: str) -> None:
    """Fills the form in."""
    await page.fill("#username", name)
    await page.fill("#password", password)
    await page.click("#login")
    await expect(page.locator("#user")).to_have_text(name)


async def ask_at(page: Page, question: str) -> str:
    """Asks; the URL of the stream that answers."""
    await page.fill("#question", question)
    async with page.expect_response("**/ask") as asked:
        await page.click("#send")
    return str((await (await asked.value).json())["url"])


async def growing(text: Locator, expected: str) -> None:
    """Waits until *expected* is seen to grow: more often than a proxy that gathers lets it, and never to its end."""
    element, seen = await text.element_handle(), ""
    for _ in range(5):
        longer = "([element, seen]) => element.textContent.length > seen.length && element.textContent"
        seen = await (await text.page.wait_for_function(longer, arg=[element, seen])).json_value()
        assert expected.startswith(seen)
        assert seen != expected


async def status_of(context: BrowserContext, url: str) -> int:
    """How the browser's cookies are answered at *url*."""
    response = await context.request.get(url)
    await response.dispose()
    return response.status


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(180)  # answers take their time, several of them
async def test_an_answer_survives_a_reload_and_a_log_out_and_is_its_users_alone(site: Site, browser: Browser) -> None:
    first = answer({**BODY, "model": SLOW})
    messages = [*BODY["messages"], {"role": "assistant", "content": first}, {"role": "user", "content": "And the sun?"}]
    second = answer({"model": SLOW, "messages": messages})
    async with page_at(site.address, browser) as page:
        text = page.locator(".message[data-role=assistant] .text")
        completed = page.locator(".message[data-role=assistant][data-outcome=completed] .text")
        await log_in_at(page, "ada", "lovelace")

        await ask_at(page, QUESTION)
        await growing(text, first)
        await page.reload()
        await growing(text, first)  # it goes on
        await expect(completed).to_have_text(first)
        assert stored(site.folder, "role, content, outcome") == [
            ("user", QUESTION, ""),
            ("assistant", first, "completed"),
        ]
        await page.reload()
        assert await completed.all_text_contents() == [first]  # from the server, without the script

        url = site.address + await ask_at(page, "And the sun?")
        await growing(text.last, second)
        async with page.expect_event("requestfailed", lambda request: request.url.startswith(url)):
            await page.click("#logout")  # and the page stops following
        await expect(page.locator("#login")).to_be_visible()
        assert await status_of(page.context, url) == 401

        await log_in_at(page, "grace", "hopper")
        await expect(page.locator(".message")).to_have_count(0)
        assert await status_of(page.context, url) == 404
        assert (await (await page.context.request.get(f"{site.address}/v1/streams")).json())["data"] == []
        for path in ("/login", "/"):  # back, over the form, to what was ada's page
            await page.go_back(wait_until="commit")  # a page that was kept is not loaded again
            await expect(page).to_have_url(site.address + path)
        await expect(page.locator("#user")).to_have_text("grace")
        await expect(page.locator(".message")).to_have_count(0)
        await page.click("#logout")
        assert await status_of(page.context, url) == 401

        await log_in_at(page, "ada", "lovelace")  # whose answer went on
        await expect(completed).to_have_text([first, second])
    assert stored(site.folder, "content, outcome")[2:] == [("And the sun?", ""), (second, "completed")]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="session")
async def test_who_asks_before_the_script_is_there_is_not_shown_json(site: Site, browser: Browser) -> None:
    arrived = asyncio.Event()

    async def hold(route: Route) -> None:
        await arrived.wait()
        await route.continue_()

    async with page_at(site.address, browser) as page:
        await page.route("**/old.js", hold)
        await page.fill("#username", "ada")
        await page.fill("#password", "lovelace")
        await page.click("#login", no_wait_after=True)
        await page.fill("#question", QUESTION)
        await page.press("#question", "Enter")
        await expect(page.locator("#send")).to_be_disabled()
        arrived.set()
        await expect(page.locator("#send")).to_be_enabled()
        async with page.expect_response("**/ask") as asked:
            await page.press("#question", "Enter")
        assert (await asked.value).status == 201
        await page.click("#stop")
        await expect(page.locator("#status")).to_have_text("Stopped.")


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(180)  # answers take their time, several of them
async def test_a_page_follows_what_flask_has_started_for_its_user(site: Site, browser: Browser) -> None:
    expected = answer({"model": SLOW, "messages": [*SAID, SUMMARISE]})
    say_something(site.folder)
    async with page_at(site.address, browser) as page:
        summary = page.locator("#summary")
        await log_in_at(page, "ada", "lovelace")
        await page.click("#summarise")
        await growing(summary, expected)
        await page.reload()
        await growing(summary, expected)
        await expect(summary).to_have_attribute("data-outcome", "completed")
        assert await summary.text_content() == expected
        url = site.address + str(await summary.get_attribute("data-stream"))
        await page.click("#logout")
        assert await status_of(page.context, url) == 401
        await log_in_at(page, "grace", "hopper")
        assert await status_of(page.context, url) == 404
