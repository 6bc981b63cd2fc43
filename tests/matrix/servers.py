"""The servers of the page as processes, and nginx in front of them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.matrix.environments import Failed
from tests.matrix.page import Page, at_port
from tests.matrix.plan import SERVERS, Row
from tests.matrix.processes import end

TOKEN = "s3cret"
PATIENCE = 60.0  # seconds, for a start or a stop
APP = Path(__file__).with_name("app.py")
MOUNTED = Path(__file__).with_name("mounted.py")
# Below the ports that the system gives to outgoing connections. The processes of a test run have neighbouring ids, and
# must not try the same ports.
_PORTS = itertools.count(20_000 + os.getpid() * 97 % 10_000)


@dataclass(frozen=True)
class Site:
    """What a server is started with."""

    python: Path
    """The folder of its virtual environment."""
    upstream: str
    work: Path
    """A folder for its files."""
    page: Page


@dataclass
class Server:
    """A running server."""

    process: asyncio.subprocess.Process
    port: int
    url: str
    log: Path

    async def stop(self) -> None:
        """Ends it and whatever it has started."""
        await end(self.process, patience=5)


@asynccontextmanager
async def serve(site: Site, rows: Sequence[Row]) -> AsyncIterator[dict[str, Row]]:
    """Starts what *rows* need; gives each row's address."""
    async with AsyncExitStack() as stack:
        servers = {}
        for client, name, below in sorted({(row.upstream_client, row.server, "/ai" in row.way) for row in rows}):
            server = await begin(site, name, client, below=below)
            stack.push_async_callback(server.stop)
            servers[client, name, below] = server
        for server in servers.values():
            await ready(server)
        proxied = [row for row in rows if row.way != "direct"]
        ports = {row: servers[row.upstream_client, row.server, False].port for row in rows if row.way == "direct"}
        if proxied:
            ports |= await stack.enter_async_context(_nginx(site, proxied, servers))
        yield {f"http://127.0.0.1:{ports[row]}{'/ai' if '/ai' in row.way else ''}/v1": row for row in rows}


async def begin(
    site: Site, name: str, upstream_client: str, *, below: bool = False, drain: int = 20, app: Path = APP
) -> Server:
    """Starts the server *name* as the page says. *below*: below `/ai`. *drain*: its seconds. *app*: what it serves."""
    port = free_port()
    folder = site.work / f"{name}-{upstream_client}-{port}"
    folder.mkdir()
    for script in site.page.scripts:
        code = site.page.script(script, port, below=below).replace("drain(20", f"drain({drain}")
        if app == MOUNTED:  # as docs/how-to/beside-flask.md says
            code = code.replace("import ai, app\n", "import ai, app, streaming_app\n")
            code = code.replace("@app.before_serving", "@streaming_app.before_serving")
        folder.joinpath(script).write_text(code, "utf-8")
    shutil.copy(app, folder / "app.py")
    special = f"{name} at /ai"
    program, *arguments = site.page.command(special if below and special in site.page.servers else name, port)
    command = [site.python / "bin" / program, *arguments]
    return await _start(command, folder, port, env=_environ(site, folder, upstream_client))


def _environ(site: Site, folder: Path, upstream_client: str) -> dict[str, str]:
    return {
        "PATH": f"{site.python / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "OPENAI_BASE_URL": f"{site.upstream}/v1",
        "OPENAI_API_KEY": "any",
        "QUART_OPENAI_SSE_RETRY": "1",  # EventSource waits for as long as the server says
        "MATRIX_TOKEN": TOKEN,
        "MATRIX_UPSTREAM_CLIENT": upstream_client,
    }


async def _start(command: Sequence[object], folder: Path, port: int, *, env: dict[str, str]) -> Server:
    """Starts a process in *folder*, which is to listen on *port*."""
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Server(process, port, f"http://127.0.0.1:{port}/v1", log)


async def ready(server: Server) -> None:
    """Waits until it answers anything. Raises `Failed` if it has ended, or does not."""
    async with httpx.AsyncClient(timeout=5) as client:
        for _ in range(int(PATIENCE / 0.05)):
            if server.process.returncode is not None:
                break
            try:
                await client.get(server.url)
            except httpx.TransportError:
                await asyncio.sleep(0.05)  # there is nothing else to wait for: it says nothing when it listens
            else:
                return
    raise Failed(f"{server.log.parent.name} did not start:\n{server.log.read_text(errors='replace')[-2000:]}")


@asynccontextmanager
async def _nginx(
    site: Site, rows: Sequence[Row], servers: dict[tuple[str, str, bool], Server]
) -> AsyncIterator[dict[Row, int]]:
    """One nginx with a port for each of *rows*."""
    ports = {row: free_port() for row in rows}
    parts = []
    for row, port in ports.items():
        plain, below = (servers[row.upstream_client, row.server, below].port for below in (False, True))
        settings = at_port(site.page.nginx[""], plain) + at_port(site.page.nginx[SERVERS[row.server]], below)
        if row.way == "nginx bare":
            settings = f"location / {{ proxy_pass http://127.0.0.1:{plain}; }}"
        parts.append(f"server {{ listen 127.0.0.1:{port}; {settings} }}\n")
    async with run_nginx("".join(parts), port=min(ports.values()), work=site.work):
        yield ports


@asynccontextmanager
async def run_nginx(servers: str, *, port: int, work: Path) -> AsyncIterator[None]:
    """An nginx with what is in *servers*, one of which listens on *port*; its files are in a new folder of *work*."""
    folder = work / f"nginx-{port}"
    folder.mkdir()
    (folder / "nginx.conf").write_text(_NGINX.format(user=_user(), servers=servers), "utf-8")
    async with run_proxy((nginx(), "-p", folder, "-e", "stderr", "-c", "nginx.conf"), folder, port):
        yield


@asynccontextmanager
async def run_proxy(command: Sequence[object], folder: Path, port: int) -> AsyncIterator[None]:
    """A proxy that listens on *port* and has its files in *folder*."""
    proxy = await _start(command, folder, port, env={"PATH": os.environ["PATH"], "HOME": str(folder)})
    try:
        await ready(proxy)
        yield
    finally:
        await proxy.stop()


_NGINX = """{user}daemon off;
pid nginx.pid;
events {{}}
http {{
access_log off;
client_body_temp_path body;
proxy_temp_path proxy;
fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi;
scgi_temp_path scgi;
{servers}}}
"""


def _user() -> str:
    return "user root;\n" if os.geteuid() == 0 else ""


def nginx() -> str:
    """The path of nginx, or ""."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or ""


def free_port() -> int:
    """A port on which nobody listens."""
    for port in _PORTS:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("there is no end to them")
