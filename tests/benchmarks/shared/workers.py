"""Redis, and the workers of one server that share it, all on the servers' core."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.harness import SERVER_CORE, TASK, TOKEN, listening, on_core
from tests.benchmarks.prepare import agno, node_peer, python_with
from tests.matrix.environments import ROOT, Failed
from tests.matrix.processes import end
from tests.matrix.servers import free_port

PACKAGES = ("quart", "httpx", "msgspec", "uvicorn", "uvloop", "httptools", "redis", "hiredis")
_UVICORN = ("{python}", "-m", "uvicorn", "--workers", "1", "--port", "{port}", "--log-level", "warning")
_OURS = (*_UVICORN, "tests.benchmarks.peers.ours:app")


@dataclass(frozen=True)
class Way:
    """One way to serve streams. In *command*, `{python}`, `{program}` and `{port}` are replaced."""

    name: str
    about: str
    command: tuple[str, ...] = _OURS
    log: str = ""
    """The option `log` of this extension; `{redis}` is the server's address, `{folder}` is empty at first."""
    python: str = ""
    program: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    """What differs in what the load is asked."""


MEMORY = Way("memory", "this extension with the memory log", log="memory://")
REDIS = Way("redis", "this extension with its log in Redis", log="{redis}")
SQLITE = Way("sqlite", "this extension with its log in an SQLite file", log="sqlite:///{folder}/streams.db")
XREAD = Way(
    "xread",
    "Quart and redis-py: an XADD for each chunk, an XREAD BLOCK for each reader",
    (*_UVICORN, "tests.benchmarks.peers.xread:app"),
)
RESUMABLE = Way(
    "resumable-stream",
    "a small Node server around npm's resumable-stream",
    ("node", "{program}"),
    program="resumable.mjs",
)
AGNO = Way(
    "agno",
    "FastAPI and Agno: background runs with its Redis event stream",
    (*_UVICORN, "tests.benchmarks.peers.agno_stream:app"),
    python="agno",
    environ={"AGNO_BACKGROUND_MAX_CONCURRENCY": "0", "AGNO_TELEMETRY": "false"},
    task={"piece": "event: RunContent\n", "end": "event: RunCompleted"},
)


@dataclass
class Redis:
    """A server that is empty and stores nothing on disk."""

    port: int
    pid: int
    version: str

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@dataclass
class Deployment:
    """Some workers of one way that answer."""

    way: Way
    addresses: list[str]
    leaders: list[int]
    redis: Redis
    folder: Path

    def worker_cpu(self, number: int) -> float:
        """The seconds of CPU time of one worker until now."""
        return measure.cpu_seconds(measure.session(self.leaders[number]))

    def cpu(self) -> dict[str, float]:
        """The seconds of CPU time of each of its processes until now."""
        used = {f"worker {place + 1}": self.worker_cpu(place) for place in range(len(self.leaders))}
        return used | {"redis": measure.cpu_seconds([self.redis.pid])}

    def task(self, **members: Any) -> dict[str, Any]:
        """What the load is asked."""
        others = self.addresses[-1] if len(self.addresses) > 1 else ""
        return {**TASK, "address": self.addresses[0], "others": others, **members, **self.way.task}


def redis_program() -> str:
    """The path of Redis. Raises `Failed`."""
    if found := shutil.which("redis-server"):
        return found
    raise Failed("redis-server is not found: on Debian, apt-get install redis-server")


@asynccontextmanager
async def start_redis(*options: str) -> AsyncIterator[Redis]:
    """Redis on a port of its own, which has nothing to do with another one on this machine."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="benchmark-redis-") as folder, on_core(SERVER_CORE):
        process = await asyncio.create_subprocess_exec(
            *(redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""),
            *("--appendonly", "no", "--daemonize", "no", *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            version = ""
            async for line in process.stdout:
                if b"Redis version=" in line:
                    version = line.partition(b"Redis version=")[2].partition(b",")[0].decode()
                if b"eady to accept connections" in line:
                    break
            else:
                raise Failed("redis-server has ended")
            yield Redis(port, process.pid, version)
        finally:
            await end(process, patience=3)


@asynccontextmanager
async def deployed(
    way: Way, upstream: str, cache: Path, *, workers: int = 1, switches: str = "", seconds: float = 0.0
) -> AsyncIterator[Deployment]:
    """*way* on so many workers, with a new Redis; *upstream* is the API's base URL. Raises `Failed`."""
    python = await agno(cache) if way.python == "agno" else await python_with(cache, PACKAGES)
    program = await node_peer(cache, way.program) if way.program else ""
    async with start_redis() as redis, AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"benchmark-{way.name}-")))
        found = Deployment(way, [], [], redis, folder)
        for number in range(workers):
            port = free_port()
            environ = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "PORT": str(port),
                "TOKEN": TOKEN,
                "OPENAI_BASE_URL": upstream,
                "OPENAI_API_KEY": "sk-any",
                "REDIS_URL": redis.address,
                "BENCHMARK_SWITCHES": switches,
                "BENCHMARK_SECONDS": str(seconds),
                **way.environ,
            }
            if way.log:
                environ["QUART_OPENAI_SSE_LOG"] = way.log.format(redis=redis.address, folder=folder)
            command = [part.format(python=python, program=program, port=port) for part in way.command]
            leader = await stack.enter_async_context(_process(command, port, environ, folder / f"log-{number}.txt"))
            found.addresses.append(f"127.0.0.1:{port}")
            found.leaders.append(leader)
        yield found


@asynccontextmanager
async def _process(command: list[str], port: int, environ: dict[str, str], log: Path) -> AsyncIterator[int]:
    with on_core(SERVER_CORE), log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        await listening(process, port)
        yield process.pid
    except Failed as failed:
        lines = log.read_text("utf-8", "replace").splitlines()[-12:]
        raise Failed("\n      ".join([str(failed), *lines])) from None
    finally:
        await end(process, patience=3)
        if os.environ.get("BENCHMARK_SHOW_LOGS"):
            sys.stderr.write(log.read_text("utf-8", "replace"))
