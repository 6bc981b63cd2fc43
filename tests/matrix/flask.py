"""A Flask app that is mounted on a server of the page: what becomes of uploads that it refuses, and of odd headers."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.matrix.servers import MOUNTED, Server, Site, begin, ready

SIZE = 40_000_000
SMALL = 1_000_000
MEMORY = 60_000_000
"""How much a server may grow while it is sent ten times as much. It keeps a few pieces for each connection."""


async def check_flask(site: Site, name: str, upstream_client: str) -> dict[str, str]:
    """The problems, or "", by the names of the checks."""
    server = await begin(site, name, upstream_client, app=MOUNTED)
    problems = {}
    try:
        await ready(server)
        for check, run in {"refuse": _refuse, "header": _header}.items():
            try:
                async with asyncio.timeout(60):
                    await asyncio.to_thread(run, server)
                problems[check] = ""
            except Exception as error:
                problems[check] = f"{type(error).__name__}: {error}"
    finally:
        await server.stop()
    return problems


def _refuse(server: Server) -> None:
    """Uploads by clients that send everything before they read, and one hundred of them that go away."""
    before = _memory(server.process.pid)
    clients: list[Callable[[int, int], int]] = [_blocking_client, _httpx_client, send_all_then_read]
    for client in clients:
        if (status := client(server.port, SIZE)) != 404:
            raise AssertionError(f"{client.__name__} was answered {status}")
    for _ in range(100):
        send_all_then_read(server.port, SMALL)
    if (grown := _memory(server.process.pid) - before) > MEMORY:
        raise AssertionError(f"its memory has grown by {grown} bytes")


def _header(server: Server) -> None:
    headers = {"X_Forwarded_For": "6.6.6.6", "X-Forwarded-Host": "here"}
    seen = httpx.get(f"http://127.0.0.1:{server.port}/headers", headers=headers).json()
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
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 + sum(map(_memory, map(int, children.split())))
