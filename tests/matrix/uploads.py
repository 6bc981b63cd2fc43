"""A Flask app that is mounted on a server of the page: what becomes of uploads that it refuses, and of odd headers."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.async_api import async_playwright

from tests.matrix.plan import CHROMIUM
from tests.matrix.servers import MOUNTED, Server, Site, begin, ready

SIZE = 40_000_000
SMALL = 1_000_000
MEMORY = 60_000_000
"""Bytes by which a server may grow while it is sent 220 MB. It keeps a few pieces for each connection."""

UPLOAD = """async (size) => {
    const response = await fetch("/missing", { method: "POST", body: new Uint8Array(size) });
    await response.text();
    return response.status;
}"""


async def check_flask(site: Site, name: str, upstream_client: str) -> dict[str, str]:
    """The problems, or "", by the names of the checks."""
    server = await begin(site, name, upstream_client, app=MOUNTED)
    problems = {}
    try:
        await ready(server)
        for check, run in {"refuse": _refuse, "browser": _browser, "header": _header}.items():
            try:
                async with asyncio.timeout(60):
                    await run(server)
                problems[check] = ""
            except Exception as error:
                problems[check] = f"{type(error).__name__}: {error}"
    finally:
        await server.stop()
    return problems


async def _refuse(server: Server) -> None:
    before = _sockets(server.process.pid)
    await asyncio.to_thread(_upload, server)
    while _sockets(server.process.pid) > before:  # until the check's time is over
        await asyncio.sleep(0.05)


async def _browser(server: Server) -> None:
    """An upload by a page."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{server.port}/headers")
        if (status := await page.evaluate(UPLOAD, SIZE)) != 404:
            raise AssertionError(f"Chromium was answered {status}")
        await browser.close()


def _upload(server: Server) -> None:
    """Uploads by clients that send everything before they read the answer, and one hundred smaller ones."""
    before = _memory(server.process.pid)
    clients: list[Callable[[int, int], int]] = [_blocking_client, _httpx_client, send_all_then_read]
    for client in clients:
        if (status := client(server.port, SIZE)) != 404:
            raise AssertionError(f"{client.__name__} was answered {status}")
    for _ in range(100):
        send_all_then_read(server.port, SMALL)
    if (grown := _memory(server.process.pid) - before) > MEMORY:
        raise AssertionError(f"its memory has grown by {grown} bytes")


async def _header(server: Server) -> None:
    headers = {"X_Forwarded_For": "6.6.6.6", "X-Forwarded-Host": "here"}
    async with httpx.AsyncClient() as client:
        seen = (await client.get(f"http://127.0.0.1:{server.port}/headers", headers=headers)).json()
    if "HTTP_X_FORWARDED_FOR" in seen or seen["HTTP_X_FORWARDED_HOST"] != "here":
        raise AssertionError(f"Flask was told of {sorted(seen)}")


def _blocking_client(port: int, size: int) -> int:
    """As `requests` and urllib3 do it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/missing", body=bytes(size))
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def _httpx_client(port: int, size: int) -> int:
    return httpx.post(f"http://127.0.0.1:{port}/missing", content=bytes(size), timeout=20).status_code


def send_all_then_read(port: int, size: int, path: str = "/missing") -> int:
    """The status, once the whole response has been read and the server has closed the connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.encode() + bytes(size))
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    start, _, body = received.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in start.split(b"\r\n")[1:])
    if len(body) != int(lines[b"content-length"]):
        raise AssertionError(f"{len(body)} bytes of {lines[b'content-length'].decode()}")
    return int(start.split(b" ", 2)[1])


def _memory(pid: int) -> int:
    """The bytes that a process and its children have in memory."""
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * 4096 for each in _family(pid))


def _sockets(pid: int) -> int:
    """The sockets that a process and its children have open."""
    links = (link for each in _family(pid) for link in Path(f"/proc/{each}/fd").iterdir())
    return sum(_target(link).startswith("socket:") for link in links)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # it has been closed meanwhile
        return ""


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]
