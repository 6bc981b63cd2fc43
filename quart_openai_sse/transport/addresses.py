"""From a host's name to a socket: the first of its addresses that answers."""

from __future__ import annotations

import asyncio
import socket
from itertools import chain, zip_longest
from typing import Any

_DELAY = 0.25  # seconds until the next address is tried beside those before it: RFC 8305, 5


async def open_socket(host: str, port: int) -> socket.socket:
    """A socket that is connected to *host*. Raises `OSError`.

    asyncio's own happy eyeballs lose a socket if they are cancelled in the moment in which it is connected.
    """
    loop = asyncio.get_running_loop()
    addresses = _in_turns(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
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
            over = [each for each in attempts if each.done()]
            failures = [failure for each in over if (failure := each.exception()) is not None]
            if len(over) > len(failures):
                chosen = next(each.result() for each in over if each.exception() is None)
                return chosen
        raise failures[-1]
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(lambda attempt: _give_up(attempt, chosen))


async def _attempt(address: Any) -> socket.socket:
    family, kind, protocol, _, where = address
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, where)
    except BaseException:
        opened.close()
        raise
    return opened


def _give_up(attempt: asyncio.Task[socket.socket], chosen: socket.socket | None) -> None:
    if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not chosen:
        attempt.result().close()


def _in_turns(addresses: list[Any]) -> list[Any]:
    """*addresses* with their families in turns, beginning with the first one's (RFC 8305, 4)."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]
