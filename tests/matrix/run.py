"""One run: environments, then for each of them its servers and every client against them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from quart_openai_sse.simulator import answer
from tests.matrix.environments import Failed, client_command, server_environment, version_of, versions
from tests.matrix.judge import Outcomes, judge, table
from tests.matrix.page import PAGE, read_page
from tests.matrix.plan import CLIENTS, KNOWN, QUARTS, SERVERS, WITHOUT_CLIENT, Client, Environment, Row, rows
from tests.matrix.processes import communicate
from tests.matrix.servers import TOKEN, Site, nginx, serve
from tests.matrix.shutdown import check_drain
from tests.matrix.uploads import check_flask
from tests.matrix.upstream import serve_upstream

QUESTION = 'How far is the moon? "Tell" me — 月 🌕'
TOKENS = 60
MODEL = f"sim-fast-length-{TOKENS}"
EXPECTED = answer({"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]})
PARALLEL = 2
LIMIT = 900.0  # seconds, for one client against all servers of one environment

T = TypeVar("T")


class Run:
    """What the command line asks for, and what came of it. *work* is a folder for files that are not kept."""

    def __init__(self, options: Namespace, work: Path) -> None:
        self._quick: bool = options.quick
        self._newest: bool = options.newest
        self._pythons = {version_of(python): python for python in options.python or [sys.executable]}
        self._servers = tuple(name for name in SERVERS if name in (options.server or SERVERS))
        self._clients = [client for client in CLIENTS if client.name in (options.client or [client.name])]
        self._alone = [column for column in WITHOUT_CLIENT if column in (options.client or [column])]
        self._cache = (options.cache or Path(tempfile.gettempdir()) / "quart-openai-sse-matrix").resolve()
        self._work = work
        self._began = time.monotonic()
        self._slots = asyncio.Semaphore(PARALLEL)
        self._commands: dict[str, list[str]] = {}
        self._outcomes = Outcomes()
        self._rows: list[Row] = []
        self._server_versions: list[str] = []
        self._client_versions: set[str] = set()
        self._page = read_page(PAGE.read_text("utf-8"))

    async def run(self) -> int:
        """Runs it and prints the table; how many checks failed. Raises `Failed` if something is missing."""
        self._cache.mkdir(parents=True, exist_ok=True)
        environments = [Environment(python, quart) for python in self._pythons for quart in QUARTS]
        possible = [each for each in environments if not each.impossible]
        if self._newest:
            possible = list({each.python: each for each in sorted(possible)}.values())
        if not possible:
            raise Failed("; ".join(f"{each}: {each.impossible}" for each in environments))
        self._server_versions = [f"{each}: impossible: {each.impossible}" for each in environments if each.impossible]
        await self._make_clients()
        folders = await self._some_at_a_time(
            server_environment(self._cache, each, self._pythons[each.python]) for each in possible
        )
        self.say("environments are there")
        async with serve_upstream() as upstream:
            for environment, folder in zip(possible, folders, strict=True):
                await self._one_environment(environment, folder, upstream)
        return self._report()

    async def _make_clients(self) -> None:
        newest = max(self._pythons, key=lambda version: tuple(map(int, version.split("."))))
        sharing: dict[str, list[Client]] = {}
        for client in self._clients:
            sharing.setdefault(client.requirements, []).append(client)

        async def make(clients: list[Client]) -> None:
            for client in clients:
                self._commands[client.name] = await client_command(self._cache, client, self._pythons[newest])

        await self._some_at_a_time(make(clients) for clients in sharing.values())

    async def _one_environment(self, environment: Environment, folder: Path, upstream: str) -> None:
        installed = ", ".join(f"{name} {version}" for name, version in (await versions(folder)).items())
        self._server_versions.append(f"{environment}: {installed}")
        here = rows(environment, self._servers, quick=self._quick)
        self._rows += here
        site = Site(folder, upstream, Path(tempfile.mkdtemp(dir=self._work)), self._page)
        if self._clients:
            async with serve(site, here) as urls:
                self.say(f"{environment}: {len(urls)} addresses")
                await self._some_at_a_time(self._one_client(client, urls, upstream) for client in self._clients)
        each_server = [row for row in here if row.way == "direct" and row.upstream_client == "httpx"]
        await self._some_at_a_time(self._one_alone(site, row, each) for each in self._alone for row in each_server)

    async def _one_client(self, client: Client, urls: dict[str, Row], upstream: str) -> None:
        for row in urls.values():
            self._outcomes.expect(row, client.name, client.checks)
        job = {"client": client.name.replace(" ", "-"), "urls": list(urls), "control": upstream, "token": TOKEN}
        job |= {"model": MODEL, "question": QUESTION, "answer": EXPECTED, "tokens": TOKENS}
        began = time.monotonic()
        output, errors = b"", f"it took longer than {LIMIT:.0f} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                command = self._commands[client.name]
                _, output, errors = await communicate(command, json.dumps(job).encode() + b"\n", env=_environ())
        passed = sum(self._note(client, urls, json.loads(line)) for line in output.splitlines() if line[:1] == b"{")
        self._outcomes.missing(urls.values(), client.name, f"not run: {errors.strip()[-300:]}")
        self.say(f"  {client.name}: {passed} of {len(client.checks) * len(urls)}, {time.monotonic() - began:.0f} s")

    def _note(self, client: Client, urls: dict[str, Row], line: dict[str, Any]) -> bool:
        """Takes down a line that a client has said; whether it is about a check that passed."""
        if "versions" in line:
            self._client_versions |= {f"{name} {version}" for name, version in line["versions"].items()}
            return False
        problem = line["problem"].replace(line["url"], "URL")
        self._outcomes.note(urls[line["url"]], client.name, line["check"], problem)
        return not problem

    async def _one_alone(self, site: Site, row: Row, column: str) -> None:
        self._outcomes.expect(row, column, WITHOUT_CLIENT[column])
        check = {"drain": check_drain, "flask": check_flask}[column]
        problems = await check(site, row.server, row.upstream_client)
        for name in WITHOUT_CLIENT[column]:
            self._outcomes.note(row, column, name, problems[name])
            self.say(f"  {name}, {row.server}: {problems[name] or 'as it should be'}")

    async def _some_at_a_time(self, jobs: Iterable[Awaitable[T]]) -> list[T]:
        async def one(job: Awaitable[T]) -> T:
            async with self._slots:
                return await job

        return await asyncio.gather(*map(one, jobs))

    def _report(self) -> int:
        verdict = judge(self._outcomes, KNOWN)
        columns = [client.name for client in self._clients] + self._alone
        clients = ", ".join(sorted(self._client_versions))
        say = self.say_plainly
        say("", *table(verdict, self._rows, columns), "", *self._server_versions, f"Clients: {clients}")
        if not self._quick:
            say(subprocess.run([nginx(), "-v"], capture_output=True, text=True, check=True).stderr.strip())
        say("", f"It took {time.monotonic() - self._began:.0f} s.", verdict.line)
        return verdict.failed

    def say(self, text: str) -> None:
        """Prints a line about how far it is."""
        self.say_plainly(f"{time.monotonic() - self._began:5.0f} s  {text}")

    @staticmethod
    def say_plainly(*lines: str) -> None:
        """Prints lines."""
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def _environ() -> dict[str, str]:
    """The environment without what an SDK would read of it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "QUART_"))}
