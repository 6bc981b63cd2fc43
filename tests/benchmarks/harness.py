"""Processes: the load, and one server after the other, each on a core of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks import measure
from tests.benchmarks.measure import Sample
from tests.benchmarks.modes import WARM_UP, Mode, figures_of
from tests.benchmarks.prepare import go_program, program, python_with
from tests.benchmarks.servers import CHAT, Server
from tests.matrix.environments import ROOT, Failed
from tests.matrix.processes import communicate, end
from tests.matrix.servers import free_port

PATIENCE = 120.0  # seconds for a start
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
TOKEN = "sk-" + secrets.token_hex(32)
TASK = {"path": CHAT, "model": "gpt-4o-mini", "end": "[DONE]", "readers": 1, "patience": 20.0}


class Garbled(Failed):
    """A server answers, but not with what it was sent."""


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within it runs on *core* only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Load:
    """The process that is both the API and the clients."""

    def __init__(self, process: asyncio.subprocess.Process, said: Mapping[str, Any], *, tls: bool) -> None:
        self._process = process
        self.certificate = said["certificate"]
        self.base_url = f"https://localhost:{said['tls_port']}/v1" if tls else f"http://127.0.0.1:{said['port']}/v1"
        self.port = said["tls_port" if tls else "port"]
        self.tls = tls

    async def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Has it do *task*; what it saw."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(task).encode() + b"\n")
        await stdin.drain()
        async with asyncio.timeout(task["seconds"] + task["patience"] + 60):
            line = await stdout.readline()
        if not line:
            raise Failed("the load has ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def start_load(cache: Path, work: Path, *, tls: bool) -> AsyncIterator[Load]:
    """The load, on its core."""
    command = (await go_program(cache, "load"), work)
    with on_core(LOAD_CORE):
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GOGC": "400", "TOKEN": TOKEN},
            start_new_session=True,  # a Ctrl-C is for us: it is ended below
        )
    try:
        assert process.stdout is not None
        yield Load(process, json.loads(await process.stdout.readline()), tls=tls)
    finally:
        await end(process, patience=0)


@dataclass
class Running:
    """A server that answers."""

    server: Server
    address: str
    leader: int | None
    """The process that leads its session; `None`: there is none."""
    idle: float = 0.0
    """Its resident kilobytes when it is warm and has nothing to do."""

    def pids(self) -> list[int]:
        """Its processes."""
        return measure.session(self.leader) if self.leader else []

    def task(self, **members: Any) -> dict[str, Any]:
        """What the load is asked."""
        task = {**TASK, "address": self.address, **members, **self.server.task}
        if self.server.bare:
            gap = 1 / task["rate"] if task.get("rate") else 0.0005 if task.get("ahead") == 1 else 0
            told = {"events": task["events"], "seconds": task["seconds"] if not task.get("repeat") else 60, "gap": gap}
            task["members"] = "".join(f',"{name}":{value}' for name, value in told.items())
        return task


@asynccontextmanager
async def start_server(server: Server, load: Load, cache: Path) -> AsyncIterator[Running]:
    """*server*, warm, on its core. Raises `Failed` if it can't be had or does not answer, and `Garbled`."""
    if not server.command:
        yield Running(server, urlsplit(load.base_url).netloc.replace("localhost", "127.0.0.1"), None)
        return
    build = server.build
    python = build.python if build else await python_with(cache, server.packages)
    found = await program(cache, server.program) if server.program else ""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix=f"benchmark-{server.name}-"))
    values = {"python": python, "program": found, "port": port, "folder": folder, **_surroundings(load)}
    for name, target in server.files:
        text = Path(__file__).with_name("peers").joinpath(name).read_text("utf-8")
        (folder / target).write_text(text.format(**values), "utf-8")
    log = folder / "log.txt"
    with on_core(SERVER_CORE), log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(part.format(**values) for part in server.command),
            cwd=folder,
            env=_environ(load, port, build.path if build else ROOT) | dict(server.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        await listening(process, port)
        running = Running(server, f"127.0.0.1:{port}", process.pid)
        for task in WARM_UP:
            outcome = await load.run(running.task(**task))
            if outcome["problems"] or not outcome["streams"]:
                raise Garbled("; ".join(outcome["problems"]) or outcome["refusal"] or "nothing came")
        if server.extension:
            check_build(log.read_text("utf-8", "replace"), build.package if build else ROOT / "quart_openai_sse")
        running.idle = measure.resident_kilobytes(running.pids())
        yield running
    except Failed as failed:
        raise type(failed)("\n      ".join([str(failed), *_last_lines(log)])) from None
    finally:
        await end(process, patience=3)
        shutil.rmtree(folder, ignore_errors=True)


def check_build(log: str, package: Path) -> None:
    """Raises `Failed` unless every process that wrote this *log* has imported quart_openai_sse from *package*."""
    found = set(re.findall(r"^quart_openai_sse is (.+)$", log, re.M))
    if found != {str(package / "__init__.py")}:
        raise Failed(f"it imports quart_openai_sse from {', '.join(sorted(found)) or 'nowhere'}, not from {package}")


def _last_lines(log: Path) -> list[str]:
    """The end of what a server said, without its colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text("utf-8", "replace"))
    return [line for line in plain.splitlines() if line.strip()][-12:]


async def listening(process: asyncio.subprocess.Process, port: int) -> None:
    """Returns when a server listens on *port*. Raises `Failed` if it has ended, or does not within `PATIENCE`."""
    for _ in range(int(PATIENCE / 0.05)):
        if process.returncode is not None:
            raise Failed(f"it has ended with exit code {process.returncode}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)  # it says nothing when it listens
        else:
            writer.close()
            return
    raise Failed(f"it did not listen within {PATIENCE:.0f} s")


def _surroundings(load: Load) -> dict[str, Any]:
    return {
        "user": "user root;\n" if os.geteuid() == 0 else "",
        "upstream": f"127.0.0.1:{load.port}",
        "base_url": load.base_url,
        "token": TOKEN,
        "scheme": "https" if load.tls else "http",
        "certificate": load.certificate,
    }


def _environ(load: Load, port: int, path: Path) -> dict[str, str]:
    """Nothing of the machine's own settings but its `PATH`."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(path),
        "PORT": str(port),
        "TOKEN": TOKEN,
        "OPENAI_BASE_URL": load.base_url,
        "OPENAI_API_KEY": "sk-any",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it would ask the Internet when it starts
    }
    if load.tls:
        environ |= {"SSL_CERT_FILE": load.certificate, "QUART_OPENAI_SSE_TRUST_ENV": "true"}
    return environ


async def counts_instructions() -> bool:
    """Whether `perf stat` counts instructions on this machine."""
    if not shutil.which("perf"):
        return False
    _, _, report = await communicate(("perf", "stat", "-x,", "-e", "instructions", "true"), env=os.environ)
    return measure.instructions_of(report) is not None


async def sample(running: Running, load: Load, mode: Mode, round: int, *, counting: bool) -> Sample:  # noqa: A002
    """One mode of one round: the load does it, and the server's accounts are read before and after."""
    pids = running.pids()
    async with _memory(running) as memory, _instructions(pids if counting else []) as instructions:
        before = measure.cpu_seconds(pids)
        outcome = await load.run(running.task(**mode.task))
        used = {"cpu": measure.cpu_seconds(pids) - before} if pids else {}
    used |= {"rss": max(memory) - running.idle} if pids else {}
    used |= {"instructions": float(instructions[0])} if instructions else {}
    problems = list(outcome["problems"])
    missing = outcome["unfinished"] + outcome["refused"]
    if missing and mode.strict:
        problems.append(f"{missing} streams did not end or were refused {outcome['refusal']}".strip())
    figures = figures_of(mode, outcome, used)
    if missing:
        figures["unfinished"] = missing
    return Sample(running.server.name, mode.name, round, figures, problems)


@asynccontextmanager
async def _memory(running: Running) -> AsyncIterator[list[float]]:
    """The resident kilobytes, before and every half second."""
    seen = [measure.resident_kilobytes(running.pids())]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            seen.append(measure.resident_kilobytes(running.pids()))

    watching = asyncio.ensure_future(watch())
    try:
        yield seen
    finally:
        watching.cancel()


@asynccontextmanager
async def _instructions(pids: list[int]) -> AsyncIterator[list[int]]:
    """In the end, how many instructions *pids* have executed meanwhile, in user space and in the kernel."""
    counted: list[int] = []
    if not pids:
        yield counted
        return
    process = await asyncio.create_subprocess_exec(
        *("perf", "stat", "-x,", "-e", "instructions", "-p", ",".join(map(str, pids))),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        await asyncio.sleep(0.1)  # it does not say when it has begun
        yield counted
        process.send_signal(signal.SIGINT)
        _, report = await process.communicate()
        if (count := measure.instructions_of(report.decode())) is not None:
            counted.append(count)
    finally:
        await end(process, patience=0)
