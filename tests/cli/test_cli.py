"""The commands, run on real sockets, through pipes and on a terminal."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import pty
import re
import signal
import socket
import ssl
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
import pytest
from click.testing import CliRunner

from quart_openai_sse.cli import commands, main
from quart_openai_sse.cli.advice import RequestInfo, explain
from quart_openai_sse.cli.observed import Observed, warnings
from quart_openai_sse.cli.target import Setting, Target, likely_model
from quart_openai_sse.cli.terminal import safe
from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ConnectTimeout,
    OpenAISSEError,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamUnreachable,
)
from quart_openai_sse.simulator import Simulator, answer, serve_simulator
from quart_openai_sse.testing import chunk, finish, refused
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from tests.raw import CLOSING_HEAD, END, HEAD, Handler, Hangup, Peer, chunked, raw_upstream

ROOT = Path(__file__).parents[2]
CLI = ("-m", "quart_openai_sse.cli")
INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so do their children
os.execv(sys.executable, [sys.executable, "-W", "error", *sys.argv[1:]])
"""
KEY = "sk-a-very-secret-key-1234"


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


@asynccontextmanager
async def running(*arguments: str, cwd: Path = ROOT, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a Python program with pipes; it ends with the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", *arguments),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=cwd,
        env=surroundings(environment),
    )
    try:
        async with asyncio.timeout(30):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command, with this checkout in front of installed packages."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**os.environ, "COLUMNS": "80", **environment, "PYTHONPATH": os.pathsep.join(paths)}


async def run(*arguments: str, typed: str = "", **environment: str) -> Done:
    """Runs a command in a thread of this process, with streams that are not a terminal."""
    invoke = partial(CliRunner().invoke, prog_name="quart-openai-sse", input=typed)
    done = await asyncio.to_thread(invoke, commands, arguments, env={"COLUMNS": "80", **environment})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


async def run_alone(
    *arguments: str, typed: str = "", program: tuple[str, ...] = CLI, cwd: Path, **environment: str
) -> Done:
    """Runs a command in a new process, which can import an app from *cwd*."""
    async with running(*program, *arguments, cwd=cwd, **environment) as process:
        out, err = await process.communicate(typed.encode())
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def check(base_url: str, *arguments: str, **environment: str) -> Done:
    done = await run("check", "--base-url", base_url, *arguments, **environment)
    assert done.err == ""
    return done


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


# check ----------------------------------------------------------------------------------------------------------------


async def test_check_prints_its_findings(simulator: Simulator) -> None:
    done = await check(simulator.base_url)
    assert done.status == 0
    assert f"Address       {simulator.base_url} (from --base-url)" in done.out
    assert "Key           none" in done.out
    assert "Models        7: sim, sim-fast, sim-slow, sim-long, sim-reasoning, …" in done.out
    assert "Model         sim (the first chat model listed)" in done.out
    assert re.search(r"First output  after \d+\.\d\d s", done.out)
    assert re.search(r"Stream        35 chunks in \d+ reads, \d+\.\d\d s in total", done.out)
    assert "End           finish_reason length, then [DONE]" in done.out
    assert re.search(r"Tokens        \d+ in, 32 out \(usage was sent as requested\)", done.out)
    assert done.out.endswith("\nIt works.\n")


async def test_check_reads_the_environment_as_an_app_does() -> None:
    async with serve_simulator(first_token_delay=0, tokens_per_second=0, api_key=KEY) as simulator:
        settings = {
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            "QUART_OPENAI_SSE_BASE_URL": simulator.base_url,
            "OPENAI_API_KEY": KEY,
            "QUART_OPENAI_SSE_MODEL": "sim-reasoning",
            "QUART_OPENAI_SSE_INCLUDE_USAGE": "false",
        }
        done = await run("check", **settings)
    assert done.status == 0
    assert "(from QUART_OPENAI_SSE_BASE_URL)" in done.out
    assert "Key           sent in Authorization (from OPENAI_API_KEY)" in done.out
    assert "Model         sim-reasoning (from QUART_OPENAI_SSE_MODEL)" in done.out
    assert "Tokens        unknown: the upstream sent no usage" in done.out
    assert KEY not in done.out + done.err


async def test_check_shows_no_query_of_an_address(simulator: Simulator) -> None:
    done = await check(f"{simulator.base_url}?key={KEY}")
    assert done.status == 0
    assert KEY not in done.out


async def test_check_takes_the_key_from_the_variable_that_is_named() -> None:
    async with serve_simulator(first_token_delay=0, tokens_per_second=0, api_key=KEY) as simulator:
        options = {"OPENAI_API_KEY": "sk-another-key", "OPENAI_MODEL": "sim-fast", "MINE": KEY}
        done = await check(simulator.base_url, "--api-key-env", "MINE", **options)
    assert done.status == 0
    assert "sent in Authorization (from MINE)" in done.out
    assert "Model         sim-fast (from OPENAI_MODEL)" in done.out
    assert KEY not in done.out


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("missing-sim-fost", ("has no model 'missing-sim-fost'", "Some of its models: sim-fast")),
        ("sim-error-401", ("requires a key, but none was sent", "OPENAI_API_KEY")),
        ("sim-error-429", ("accepts no more requests", "status 429")),
        ("sim-error-503", ("The upstream failed", "check its log")),
        ("sim-error-400", ("did not accept the request", "status 400")),
    ],
    ids=["no such model", "no key", "too many requests", "its fault", "refused"],
)
async def test_check_says_why_the_upstream_refused(model: str, words: tuple[str, ...], simulator: Simulator) -> None:
    done = await check(simulator.base_url, "--model", model)
    assert done.status == 1
    assert "It does not work." in done.out
    assert all(each in done.out for each in words)


async def test_check_says_that_a_key_is_refused_and_never_shows_it() -> None:
    async with serve_simulator(api_key="sk-right") as simulator:
        done = await check(simulator.base_url, OPENAI_API_KEY=KEY)
    assert done.status == 1
    assert "refused the key (401; from OPENAI_API_KEY, sent in Authorization)" in done.out
    assert KEY not in done.out


@pytest.mark.parametrize("model", [[], ["--model", "sim"]], ids=["without a model", "with a model"])
async def test_check_finds_that_v1_is_missing(model: list[str], simulator: Simulator) -> None:
    done = await check(simulator.base_url.removesuffix("/v1"), *model)
    assert done.status == 1
    assert "OpenAI's routes do not exist at http" in done.out
    assert f"The address may lack /v1 at its end. Try {simulator.base_url}\n" in done.out


async def test_check_finds_a_route_in_the_address(simulator: Simulator) -> None:
    done = await check(f"{simulator.base_url}/chat/completions")
    assert done.status == 1
    assert done.out.endswith(f"without the route: {simulator.base_url}\n")


async def test_check_says_that_nothing_listens() -> None:
    port = closed_port()
    done = await check(f"http://127.0.0.1:{port}/v1")
    assert done.status == 1
    assert f"No server is listening at 127.0.0.1:{port}." in done.out


async def test_check_says_that_there_is_no_tls_at_that_port(simulator: Simulator) -> None:
    done = await check(simulator.base_url.replace("http://", "https://"))
    assert done.status == 1
    assert "TLS: " in done.out
    assert f"the address is {simulator.base_url}." in done.out


STREAM = chunk("", role="assistant") + chunk("I am ready.")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
MODELS = json.dumps({"data": [{"id": "raw"}]}).encode()


def replying(head: bytes, *body: bytes, models: bytes = MODELS) -> Handler:
    """A server that responds to every chat request with these bytes."""

    async def handler(peer: Peer) -> None:
        if peer.head.startswith(b"GET /v1/models"):
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(models) + models)
            return
        await peer.send(head + b"".join(body))
        if head in (CLOSING_HEAD, CUT):
            raise Hangup

    return handler


def document(kind: bytes, body: bytes, status: bytes = b"200 OK", *more: bytes) -> tuple[bytes, bytes]:
    lines = (b"HTTP/1.1 " + status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *more)
    return b"\r\n".join(lines) + b"\r\n\r\n", body


GZIPPED = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
CUT = HEAD + b" "
FAILURES: dict[str, tuple[Handler, str]] = {
    "gzip": (replying(GZIPPED, chunked(b"\x1f\x8b..."), END), "The stream is compressed (gzip)"),
    "JSON": (
        replying(*document(b"application/json", b'{"choices":[]}')),
        "The response is a document (application/json)",
    ),
    "HTML": (replying(*document(b"text/html", b"<h1>Log in</h1>")), "The response is a document (text/html)"),
    "text": (replying(CLOSING_HEAD, b"Please log in."), "The response is a document (text/event-stream)"),
    "garbled, labelled as JSON": (
        replying(*document(b"application/json", b"data: <oops>\n\n")),
        "is not a chat completions stream",
    ),
    "truncated": (replying(HEAD, chunked(STREAM), END), "ended before its finish_reason"),
    "cut": (replying(CLOSING_HEAD, STREAM), "ended before its finish_reason"),
    "garbled": (replying(HEAD, chunked(b"data: <oops>\n\n"), END), "is not a chat completions stream"),
    "failed": (
        replying(HEAD, chunked(STREAM + b'data: {"error":{"message":"GPU lost"}}\n\n'), END),
        "reported an error within its stream: GPU lost",
    ),
    "moved": (
        replying(*document(b"text/plain", b"", b"307 Moved", b"Location: https://there.example/v1/chat/completions")),
        "It points to https://there.example/v1/chat/completions\n",
    ),
    "stream_options": (
        replying(*document(b"application/json", b'{"error":"stream_options: unknown field"}', b"422 No")),
        "Set QUART_OPENAI_SSE_INCLUDE_USAGE=false.",
    ),
    "no route": (
        replying(*document(b"text/html", b"<h1>Not found</h1>", b"404 Not Found")),
        "Check the path: /models and /chat/completions must be directly below it.",
    ),
    "not HTTP": (replying(b"220 smtp.example ESMTP\r\n\r\n"), "is not valid HTTP/1.1"),
    "hung up": (replying(CUT), "closed the connection before it responded"),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_check_explains_the_failures_of_a_server(case: str) -> None:
    handler, words = FAILURES[case]
    if case == "hung up":
        handler = hang_up
    async with raw_upstream(handler) as server:
        done = await check(server.base_url)
    assert done.status == 1
    assert "It does not work." in done.out
    assert words in done.out


async def test_check_names_the_option_that_an_event_is_too_large_for() -> None:
    async with raw_upstream(replying(HEAD, chunked(b"data: " + b"x" * 2000), END)) as server:
        done = await check(server.base_url, QUART_OPENAI_SSE_MAX_EVENT="1000")
    assert done.status == 1
    assert "sent an event of more than 1000 bytes" in done.out
    assert "Raise QUART_OPENAI_SSE_MAX_EVENT." in done.out


async def hang_up(peer: Peer) -> None:
    raise Hangup


@pytest.mark.parametrize(
    ("before", "limit", "words"),
    [
        (b"", "FIRST_OUTPUT_TIMEOUT", "No output within 0.2 s"),
        (chunked(STREAM), "GAP_TIMEOUT", "sent nothing for more than 0.2 s"),
    ],
    ids=["before the first output", "in the middle"],
)
async def test_check_says_that_a_server_is_silent(before: bytes, limit: str, words: str) -> None:
    async def handler(peer: Peer) -> None:
        await replying(HEAD, before)(peer)
        if peer.head.startswith(b"POST"):
            await peer.gone()

    async with raw_upstream(handler) as server:
        done = await check(server.base_url, **{f"QUART_OPENAI_SSE_{limit}": "0.2"})
    assert done.status == 1
    assert words in done.out
    assert f"QUART_OPENAI_SSE_{limit}" in done.out


@pytest.mark.parametrize(
    ("ending", "models", "words"),
    [
        (finish(), MODELS, "Usage was requested"),
        (finish(usage=USAGE), b"no", "The upstream has no list of models"),
    ],
    ids=["without usage", "without a list of models"],
)
async def test_check_warns_of_missing_usage_and_models(ending: bytes, models: bytes, words: str) -> None:
    async with raw_upstream(replying(HEAD, chunked(STREAM + ending), END, models=models)) as server:
        done = await check(server.base_url, "--model", "raw")
    assert done.status == 3
    assert f"Warning: {words}" in done.out
    assert done.out.endswith("It works, with warnings.\n")


async def test_check_warns_of_a_slow_first_output(simulator: Simulator) -> None:
    settings = {"QUART_OPENAI_SSE_COMMIT_AFTER": "0.01", "QUART_OPENAI_SSE_MODELS": "other"}
    done = await check(simulator.base_url, "--model", "sim-delay-0.1", **settings)
    assert done.status == 3
    assert "Warning: The first output took longer than commit_after (0.01 s)" in done.out
    assert "'sim-delay-0.1' is not one of QUART_OPENAI_SSE_MODELS" in done.out


async def test_check_asks_an_older_server_again_without_the_newer_limit() -> None:
    async def handler(peer: Peer) -> None:
        if b"max_completion_tokens" in peer.body:
            body = b'{"detail":[{"loc":["body","max_completion_tokens"],"msg":"extra_forbidden"}]}'
            await peer.send(b"".join(document(b"application/json", body, b"422 No")))
        else:
            await replying(HEAD, chunked(STREAM + finish(usage=USAGE).replace(b"data: [DONE]\n\n", b"")), END)(peer)

    async with raw_upstream(handler) as server:
        done = await check(server.base_url)
    assert done.status == 0
    assert "End           finish_reason stop, without [DONE], which is accepted" in done.out


async def test_check_shows_no_control_character_of_a_server() -> None:
    models = json.dumps({"data": [{"id": "evil\x1b]0;title\x07"}]}).encode()
    async with raw_upstream(replying(HEAD, chunked(STREAM + finish(usage=USAGE)), END, models=models)) as server:
        done = await check(server.base_url)
    assert done.status == 0
    assert "\x1b" not in done.out
    assert "evil\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}" in done.out


async def test_ctrl_c_ends_a_check_that_waits() -> None:
    arrived = asyncio.Event()

    async def handler(peer: Peer) -> None:
        arrived.set()
        await peer.gone()

    async with (
        raw_upstream(handler) as server,
        running("-c", INTERRUPTIBLE, *CLI, "check", "--base-url", server.base_url) as process,
    ):
        await arrived.wait()
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        assert (process.returncode, errors) == (130, b"")
        await server.closed.get()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "OpenAI needs a key: set QUART_OPENAI_SSE_API_KEY or OPENAI_API_KEY."),
        (["--base-url", "ftp://x"], {}, "QUART_OPENAI_SSE_BASE_URL must be an http or https address."),
        (["--api-key-env", "NOWHERE"], {}, "The environment variable NOWHERE is not set."),
        (
            [],
            {"QUART_OPENAI_SSE_KEEPALIFE": "1"},
            "QUART_OPENAI_SSE_KEEPALIFE (did you mean QUART_OPENAI_SSE_KEEPALIVE?).",
        ),
        (["--app", "nothing_here:app"], {}, "nothing_here"),
    ],
    ids=["no key", "no address", "no such variable", "an unknown key", "no such app"],
)
@pytest.mark.parametrize("command", ["check", "chat"])
async def test_a_wrong_configuration_exits_with_2(
    command: str, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    done = await run(command, *arguments, **environment)
    assert (done.status, done.out) == (2, "")
    assert words in done.err


# With an app, and below `quart` ---------------------------------------------------------------------------------------

APP = """
from quart import Quart
from quart_openai_sse import QuartOpenAISSE, allow_anonymous

app = Quart("shop")
app.config.from_prefixed_env()
"""
ONE = APP + "ai = QuartOpenAISSE(app, auth=allow_anonymous(), model='sim-fast')\n"
TWO = ONE + (
    "other = QuartOpenAISSE(app, auth=allow_anonymous(), name='other', config_prefix='OTHER_SSE_',\n"
    "    url_prefix='/other', base_url=ai.config(app).base_url, model='sim-error-503')\n"
)
KEYS = APP + (
    "async def key(principal):\n    raise LookupError('no tenant')\n"
    "ai = QuartOpenAISSE(app, auth=allow_anonymous(), api_key=key)\n"
)


@pytest.fixture
def quart_command(tmp_path: Path) -> Callable[..., Awaitable[Done]]:
    """Runs `quart` as if the package were installed: with the entry points of this checkout."""
    write_entry_points(tmp_path / "installed")

    async def quart(*arguments: str, **environment: str) -> Done:
        installed = {"PYTHONPATH": str(tmp_path / "installed")}
        return await run_alone(*arguments, program=("-m", "quart"), cwd=tmp_path, **installed, **environment)

    return quart


def write_entry_points(folder: Path) -> None:
    """The metadata that pip would write."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = folder / "quart_openai_sse-0.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: quart-openai-sse\nVersion: 0\n", "utf-8")
    metadata.joinpath("RECORD").write_text("quart_openai_sse/__init__.py,,\n", "utf-8")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = (
        f"[{group}]\n" + "".join(f"{name} = {to}\n" for name, to in points.items()) for group, points in groups.items()
    )
    metadata.joinpath("entry_points.txt").write_text("\n".join(lines), "utf-8")


async def test_check_uses_the_configuration_of_an_app(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "shop.py").write_text(ONE, "utf-8")
    done = await run_alone(
        "check", "--app", "shop:app", cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url, OPENAI_API_KEY=KEY
    )
    assert done.status == 0
    assert f"{simulator.base_url} (from the app)" in done.out
    assert "sent in Authorization (from the app)" in done.out
    assert "Model         sim-fast (from the app)" in done.out


async def test_check_overrides_the_address_of_an_app(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "shop.py").write_text(ONE, "utf-8")
    options = ("--app", "shop:app", "--base-url", simulator.base_url, "--model", "sim")
    done = await run_alone("check", *options, cwd=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert done.status == 0
    assert "(from --base-url)" in done.out


async def test_an_address_on_the_command_line_is_asked_in_place_of_configured_upstreams(
    tmp_path: Path, simulator: Simulator
) -> None:
    several = "upstreams=[{'base_url': 'http://127.0.0.1:9/v1'}]"
    (tmp_path / "shop.py").write_text(ONE.replace("model=", f"{several}, model=", 1), "utf-8")
    options = ("--base-url", simulator.base_url, "--model", "sim")
    for where, environment in (
        (("--app", "shop:app"), {}),
        ((), {"QUART_OPENAI_SSE_UPSTREAMS": '[{"base_url": "http://127.0.0.1:9/v1"}]'}),
    ):
        done = await run_alone("check", *where, *options, cwd=tmp_path, **environment)
        assert (done.status, done.err) == (0, ""), done.out
        assert "(from --base-url)" in done.out


async def test_check_asks_every_instance_of_an_app(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "shop.py").write_text(TWO, "utf-8")
    done = await run_alone("check", "--app", "shop:app", cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url)
    assert done.status == 1
    works, fails = done.out.split("Instance 'other'")
    assert "Instance 'openai_sse'" in works
    assert "It works." in works
    assert "It does not work. The upstream failed" in fails


async def test_check_says_that_the_apps_own_code_raised(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "shop.py").write_text(KEYS, "utf-8")
    done = await run_alone("check", "--app", "shop:app", cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url)
    assert done.status == 1
    assert "The app's own code raised LookupError: no tenant" in done.out


@pytest.mark.parametrize(
    ("code", "words"),
    [(APP, "The app 'shop' does not use quart-openai-sse"), (ONE, "OpenAI needs a key")],
    ids=["without the extension", "without a key"],
)
async def test_an_app_that_cannot_be_checked_exits_with_2(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "shop.py").write_text(code, "utf-8")
    done = await run_alone("check", "--app", "shop:app", cwd=tmp_path)
    assert done.status == 2
    assert words in done.err


async def test_quart_has_the_commands_with_the_app_it_finds(
    quart_command: Callable[..., Awaitable[Done]], tmp_path: Path, simulator: Simulator
) -> None:
    (tmp_path / "shop.py").write_text(ONE, "utf-8")
    done = await quart_command("--app", "shop:app", "openai-sse", "check", OPENAI_BASE_URL=simulator.base_url)
    assert (done.status, done.err) == (0, "")
    assert "Model         sim-fast (from the app)" in done.out

    (tmp_path / "shop.py").rename(tmp_path / "app.py")
    done = await quart_command("openai-sse", "chat", typed="Hello\n", OPENAI_BASE_URL=simulator.base_url)
    assert (done.status, done.err) == (0, "")
    assert done.out == answer({"model": "sim-fast", "messages": [{"role": "user", "content": "Hello"}]}) + "\n"


async def test_quart_has_the_commands_without_an_app(
    quart_command: Callable[..., Awaitable[Done]], simulator: Simulator
) -> None:
    done = await quart_command("openai-sse", "check", OPENAI_BASE_URL=simulator.base_url)
    assert (done.status, done.err) == (0, "")
    assert "(from OPENAI_BASE_URL)" in done.out
    shown = await quart_command("openai-sse", "--help")
    assert shown.status == 0
    assert shown.out.startswith("Usage: python -m quart openai-sse [OPTIONS] COMMAND")
    assert all(f"  {name}  " in shown.out for name in ("chat", "check", "simulate"))
    assert "Exit codes" in shown.out


# chat, through a pipe -------------------------------------------------------------------------------------------------


async def test_each_line_of_a_pipe_is_a_question_of_one_conversation() -> None:
    replies = iter(["One.", "Two\x1b[2J.\n"])

    async def handler(peer: Peer) -> None:
        await replying(HEAD, chunked(chunk(reasoning_content="Hm.") + chunk(next(replies)) + finish()), END)(peer)

    async with raw_upstream(handler) as server:
        options = ("--base-url", server.base_url, "--model", "raw", "--system", "Be brief.")
        done = await run("chat", *options, typed="First?\n\n  Second?\n")
        bodies = [json.loads(peer.body) for peer in server.requests]
    assert done == (0, "One.\nTwo\x1b[2J.\n", "")  # a file gets what came
    assert [body["messages"] for body in bodies] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "First?"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Second?"},
        ],
    ]
    assert all(body["stream"] and body["model"] == "raw" for body in bodies)


async def test_chat_takes_the_first_model_of_the_list_that_can_chat() -> None:
    models = json.dumps({"data": [{"id": "text-embedding-3"}, {"id": "good"}]}).encode()
    async with raw_upstream(replying(HEAD, chunked(STREAM + finish()), END, models=models)) as server:
        done = await run("chat", "--base-url", server.base_url, typed="Hi\n")
        asked = json.loads(server.requests[-1].body)["model"]
    assert (done, asked) == ((0, "I am ready.\n", ""), "good")


@pytest.mark.parametrize(
    ("handler", "out", "err"),
    [
        (replying(*document(b"application/json", b'{"error":"busy"}', b"503 No")), "", "The upstream failed: busy"),
        (replying(HEAD, chunked(STREAM), END), "I am ready.\n", "ended before its finish_reason"),
        (replying(HEAD, chunked(STREAM + finish("length")), END), "I am ready.\n", "reached the length limit"),
    ],
    ids=["refused", "truncated", "too long"],
)
async def test_an_answer_that_is_not_whole_is_said_and_the_status_is_1(handler: Handler, out: str, err: str) -> None:
    async with raw_upstream(handler) as server:
        done = await run("chat", "--base-url", server.base_url, "--model", "raw", typed="Hi\nStill there?\n")
    assert (done.status, done.out) == (1, out * 2)
    assert done.err.count(err) == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("models", "words"),
    [(b"no", "The upstream's list of models cannot be read."), (b'{"data":[]}', "lists no chat model")],
    ids=["no list", "an empty one"],
)
async def test_chat_without_a_model_says_so(models: bytes, words: str) -> None:
    async with raw_upstream(replying(HEAD, models=models)) as server:
        done = await run("chat", "--base-url", server.base_url, typed="Hi\n")
    assert (done.status, done.out) == (1, "")
    assert words in done.err


async def test_ctrl_c_ends_a_chat_through_a_pipe_and_closes_the_connection(simulator: Simulator) -> None:
    options = ("chat", "--base-url", simulator.base_url, "--model", "sim-long-rate-50")
    async with running("-c", INTERRUPTIBLE, *CLI, *options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hi\nAnd then?\n")
        assert b'You asked: "Hi"' in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (await simulator.ended(1)).outcome == "closed_by_peer"
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
    assert len(simulator.counters.requests) == 1


async def test_chat_ends_when_its_output_is_closed(simulator: Simulator) -> None:
    options = ("chat", "--base-url", simulator.base_url, "--model", "sim-long-rate-50")
    command = f"{sys.executable} -W error {' '.join((*CLI, *options))} | head -c 5; exit ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=surroundings({}),
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(b"Hi\n")
        assert (process.returncode, out, err) == (1, b"You a", b"")
        assert (await simulator.ended(1)).outcome == "closed_by_peer"


# chat, on a terminal --------------------------------------------------------------------------------------------------

ON_A_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl+C is a signal
"""


class Terminal:
    """A program on a pseudo-terminal, with its input and its screen."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.screen = ""
        self._descriptor = descriptor
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            self.screen += os.read(self._descriptor, 1 << 16).decode()
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._news.set()

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def until(self, text: str) -> str:
        """Waits for *text*; returns the new part of the screen before it."""
        while text not in self.screen:
            self._news.clear()
            await self._news.wait()
        seen, _, self.screen = self.screen.partition(text)
        return seen


@asynccontextmanager
async def on_a_terminal(*arguments: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ON_A_TERMINAL + INTERRUPTIBLE, *CLI, *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=surroundings({"TERM": "dumb"}),
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours, process)
    try:
        async with asyncio.timeout(30):
            yield terminal
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        os.close(ours)


async def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(simulator: Simulator) -> None:
    async with on_a_terminal("chat", "--base-url", simulator.base_url, "--model", "sim-long-rate-50") as terminal:
        await terminal.until("Ctrl+C stops an answer, Ctrl+D ends the chat.")
        await terminal.until("> ")
        terminal.type("Hello there\n")
        await terminal.until('You asked: "Hello there"')
        terminal.type("\x03")
        assert (await simulator.ended(1)).outcome == "closed_by_peer"
        await terminal.until("(stopped)")
        await terminal.until("> ")
        # At the prompt there is nothing to stop. The newline is needed because readline may not wait for a key yet.
        terminal.type("\x03\n")
        await terminal.until("(Ctrl+D ends the chat)")
        await terminal.until("> ")
        terminal.type("Again\n")
        await terminal.until('You asked: "Again"')
        terminal.type("\x03")
        assert (await simulator.ended(2)).outcome == "closed_by_peer"
        await terminal.until("> ")
        terminal.type("\x04")
        assert await terminal.process.wait() == 0


async def test_an_answer_that_was_stopped_is_remembered_and_one_that_failed_is_not() -> None:
    stopped = asyncio.Event()

    async def handler(peer: Peer) -> None:
        number = len(server.requests)
        if number == 1:
            await peer.send(HEAD + chunked(chunk("Half an ans")))
            await peer.gone()
            stopped.set()
        elif number == 2:
            await peer.send(b"".join(document(b"application/json", b'{"error":"busy"}', b"503 No")))
        else:
            await peer.send(HEAD + chunked(chunk("Fine.") + finish()) + END)

    async with (
        raw_upstream(handler) as server,
        on_a_terminal("chat", "--base-url", server.base_url, "--model", "raw") as terminal,
    ):
        await terminal.until("> ")
        terminal.type("One\n")
        await terminal.until("Half an ans")
        terminal.type("\x03")
        await stopped.wait()
        await terminal.until("> ")
        terminal.type("Two\n")
        await terminal.until("The upstream failed: busy")
        await terminal.until("> ")
        terminal.type("Three\n")
        await terminal.until("Fine.\r\n> ")
        messages = json.loads(server.requests[2].body)["messages"]
        terminal.type("\x04")
        await terminal.process.wait()
    assert [message["content"] for message in messages] == ["One", "Half an ans", "Three"]


async def test_on_a_terminal_thoughts_are_dimmed_and_controls_are_not_obeyed() -> None:
    reply = chunk(reasoning_content="Let me see.") + chunk("It is \x1b]0;evil\x07 far.\n\tIndeed.") + finish()
    async with (
        raw_upstream(replying(HEAD, chunked(reply), END)) as server,
        on_a_terminal("chat", "--base-url", server.base_url, "--model", "raw") as terminal,
    ):
        await terminal.until("> ")
        terminal.type("How far?\n")
        shown = await terminal.until("Indeed.\r\n> ")
        terminal.type("\x04")
        await terminal.process.wait()
    assert "\x1b[2mLet me see.\x1b[0m\r\n" in shown
    assert "It is \N{REPLACEMENT CHARACTER}]0;evil\N{REPLACEMENT CHARACTER} far." in shown


# simulate -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_simulate_serves_until_a_signal_also_with_a_stream_open(number: signal.Signals) -> None:
    async with running(*CLI, "simulate", "--port", "0") as process, httpx.AsyncClient(timeout=30) as http:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        (base_url,) = (word for word in line.split() if word.startswith("http://127.0.0.1:"))
        body = {"model": "sim-delay-60", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with http.stream("POST", f"{base_url}/chat/completions", json=body) as response:
            assert response.status_code == 200
            process.send_signal(number)
            output, errors = await process.communicate()
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_a_taken_port_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert status_of("simulate", "--port", str(port)) == 1
    assert capsys.readouterr().err == f"Can't listen on 127.0.0.1 port {port}: Address already in use\n"


# The command line itself ----------------------------------------------------------------------------------------------


def status_of(*argv: str) -> Any:
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    return leaving.value.code


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["unknown"],
        ["simulate", "--port", "70000"],
        ["simulate", "--tokens-per-second", "-1"],
        ["simulate", "--first-token-delay", "inf"],
        ["check", "surplus"],
    ],
    ids=["nothing", "an unknown command", "a port too high", "a negative speed", "an endless delay", "too much"],
)
def test_a_wrong_command_line_exits_with_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv) == 2
    assert "Usage: quart-openai-sse" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", *commands.commands])
def test_every_help_has_an_example_and_the_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*filter(None, [name]), "--help") == 0
    shown = capsys.readouterr().out
    assert "Exit codes" in shown
    assert f"quart-openai-sse {name or 'simulate'}" in shown.partition("\n")[2]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")
def test_the_reference_page_shows_every_help_as_it_is() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    shown = re.findall(r"^```text\n(Usage: .*?)^```$", page, re.M | re.S)
    expected = [help_of(name) for name in ("", *commands.commands)]
    # Versions of click break lines at different places.
    assert ["".join(text.split()) for text in shown] == ["".join(text.split()) for text in expected]


def help_of(name: str) -> str:
    group = click.Context(commands, info_name="quart-openai-sse", terminal_width=78)
    if not name:
        return commands.get_help(group)
    command = commands.commands[name]
    return command.get_help(click.Context(command, info_name=name, parent=group))


@pytest.mark.parametrize("installed", [True, False])
def test_the_version_is_the_packages(
    installed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert status_of("--version") == 0
    expected = "1.2.3" if installed else "(not installed)"
    assert capsys.readouterr().out == f"quart-openai-sse {expected}\n"


# Words ----------------------------------------------------------------------------------------------------------------


def request_info(
    base_url: str = "https://ai.example/v1", *, key: str = "", model: str = "m", **options: Any
) -> RequestInfo:
    config = Config(base_url=base_url, **options)
    target = Target(
        config=config,
        create=lambda: OpenAIUpstream(config),
        base_url=Setting(base_url, "--base-url"),
        key=Setting(key, "OPENAI_API_KEY"),
        model=Setting("", ""),
        prefix="QUART_OPENAI_SSE_",
    )
    return RequestInfo(target, model)


def caused(error: OpenAISSEError, *causes: BaseException) -> OpenAISSEError:
    last: BaseException = error
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return error


@pytest.mark.parametrize(
    ("error", "summary", "advice"),
    [
        (
            caused(
                UpstreamUnreachable(),
                httpx.ConnectError("no"),
                ssl.SSLCertVerificationError(
                    1, "[SSL: X] certificate verify failed: self-signed certificate (_ssl.c:99)"
                ),
            ),
            "is not accepted (certificate verify failed: self-signed certificate).",
            "QUART_OPENAI_SSE_TRUST_ENV=true",
        ),
        (
            caused(UpstreamUnreachable(), OSError(), socket.gaierror()),
            "The host name ai.example could not be resolved.",
            "spelling",
        ),
        (
            caused(UpstreamUnreachable(), OSError(), ExceptionGroup("", [ConnectionRefusedError()])),
            "No server is listening at ai.example.",
            "Start the server",
        ),
        (ConnectTimeout(), "No connection to ai.example within 3 s.", "HTTPS_PROXY"),
        (TotalTimeout(), "The answer took more than 600 s.", "QUART_OPENAI_SSE_TOTAL_TIMEOUT"),
        (UpstreamCredentials("(403)"), "The upstream refused the key (403;", "API_KEY_HEADER=api-key"),
        (refused(402, "You have $0.02."), "is used up. The upstream said: status 402: You have $0.02.", "billing"),
        (OpenAISSEError("Odd."), "Odd.", "OpenAI-compatible"),
    ],
    ids=["certificate", "name", "refused", "no connection", "too long", "credentials", "quota", "anything else"],
)
def test_errors_have_words_and_advice(error: OpenAISSEError, summary: str, advice: str) -> None:
    problem = explain(error, request_info(key="set"))
    assert summary in problem.summary
    assert advice in problem.advice


FINE = {"first_output": 0.5, "total": 3.0, "chunks": 30, "reads": 20, "usage": True}


@pytest.mark.parametrize(
    ("seen", "options", "words"),
    [
        ({}, {}, []),
        ({"reads": 1}, {}, ["in one read"]),
        ({"reads": 1, "total": 0.1}, {}, []),  # a fast server
        ({"reads": 1, "chunks": 3}, {}, []),  # a short answer
        ({"usage": False}, {}, ["Usage was requested"]),
        ({"usage": False}, {"include_usage": False}, []),
        ({"first_output": 11}, {}, ["commit_after (10 s)"]),
        ({"listed": False}, {}, ["no list of models"]),
        ({"listed": False}, {"models": ("m",)}, []),
        ({}, {"models": ("other",)}, ["'m' is not one of QUART_OPENAI_SSE_MODELS"]),
    ],
)
def test_each_warning_has_its_condition(seen: dict[str, Any], options: dict[str, Any], words: list[str]) -> None:
    found = warnings(Observed(**{**FINE, **seen}), request_info(**options))
    assert len(found) == len(words)
    assert all(word in each for word, each in zip(words, found, strict=True))


def test_a_model_to_chat_with_is_likely_one_without_another_purpose() -> None:
    assert likely_model(["text-embedding-3", "dall-e-3", "gpt-5-mini", "gpt-5"]) == "gpt-5-mini"
    assert likely_model(["whisper-1"]) == ""


def test_lines_and_tabs_are_safe_and_other_controls_are_not() -> None:
    assert safe("a\n\tb\x1b\x07\x9b\r\ud83d") == "a\n\tb" + "\N{REPLACEMENT CHARACTER}" * 5
