"""Opens a socket to a host by its name: the first of its addresses that accepts a connection."""

from __future__ import annotations

import asyncio
import socket
from itertools import chain, zip_longest
from typing import Any

_DELAY = 0.25  # seconds until the next address is tried in parallel: RFC 8305, 5


async def open_socket(host: str, port: int) -> socket.socket:
    """A non-blocking socket that is connected to *host*. Raises `OSError` if no address accepts a connection.

    It replaces asyncio's own happy eyeballs, which leak a socket if they are cancelled at the moment it connects.
    """
    loop = asyncio.get_running_loop()
    addresses = _interleaved(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    attempts: list[asyncio.Task[socket.socket]] = []
    failures: list[BaseException] = []
    chosen: socket.socket | None = None
    try:
        while len(failures) < len(addresses):
            if len(attempts) < len(addresses):
                attempts.append(loop.create_task(_attempt(addresses[len(attempts)])))
            pending = [each for each in attempts if not each.done()]
            timeout = _DELAY if len(attempts) < len(addresses) else None
            await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finished = [each for each in attempts if each.done()]
            failures = [failure for each in finished if (failure := each.exception()) is not None]
            if len(finished) > len(failures):
                chosen = next(each.result() for each in finished if each.exception() is None)
                return chosen
        raise failures[-1]
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(lambda attempt: _close_unless(chosen, attempt))


def _interleaved(addresses: list[Any]) -> list[Any]:
    """*addresses* with the families alternating, beginning with the first address's family (RFC 8305, 4)."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


async def _attempt(address: Any) -> socket.socket:
    family, kind, protocol, _, target = address
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, target)
    except BaseException:
        opened.close()
        raise
    return opened


def _close_unless(chosen: socket.socket | None, attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not chosen:
        attempt.result().close()
