"""What a broken upstream does at the moment of its fault. Each is called with the peer and the window it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.chaos.wire import END, HEAD, Window, chunked
from tests.raw import Hangup, Peer

Action = Callable[[Peer, Window], Awaitable[None]]

PAUSE = 0.02  # seconds between two things of whatever goes on for ever


async def stall(peer: Peer, window: Window) -> None:
    """Nothing more, until the peer gives up."""
    await peer.gone()
    raise Hangup


async def close(peer: Peer, window: Window) -> None:
    raise Hangup


async def reset(peer: Peer, window: Window) -> None:
    await peer.reset()


async def keep(peer: Peer, window: Window) -> None:
    """The answer is over, and the connection good for another."""


def send(data: bytes, then: Action = stall) -> Action:
    """These very bytes."""

    async def action(peer: Peer, window: Window) -> None:
        await peer.send(data)
        await then(peer, window)

    return action


def say(data: bytes, then: Action = stall) -> Action:
    """These bytes as a part of the body."""
    return send(chunked(data), then)


def within_a_line(then: Action) -> Action:
    """Half of a header, or of an event."""

    async def action(peer: Peer, window: Window) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nConte" if window is Window.BEFORE else b'40\r\ndata: {"cho')
        await then(peer, window)

    return action


end = send(END, keep)
"""The body's end, as it should be."""


def finish(data: bytes) -> Action:
    """These bytes as the rest of the body, and its end."""
    return say(data, end)


def answer(head: bytes, body: bytes, then: Action = close) -> Action:
    """A whole answer of the upstream's own making."""
    return send(head + b"\r\n\r\n" + body, then)


def for_ever(data: bytes, *, pause: float = PAUSE) -> Action:
    """These bytes again and again, until the peer has gone."""

    async def action(peer: Peer, window: Window) -> None:
        while True:
            await peer.send(data)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stall(peer, window)

    return action


def rest(change: Callable[[bytes], bytes], then: Action) -> Action:
    """The rest of a sound body, changed."""

    async def action(peer: Peer, window: Window) -> None:
        await peer.send(chunked(change(window.rest())))
        await then(peer, window)

    return action


async def sound(peer: Peer, window: Window) -> None:
    """The rest of a sound answer."""
    await peer.send(window.closing())


async def dribble(peer: Peer, window: Window) -> None:
    """A sound answer, a byte at a time."""
    for byte in window.closing():
        await peer.send(bytes([byte]))


async def crumble(peer: Peer, window: Window) -> None:
    """A sound answer, each byte of the body a chunk."""
    head = HEAD if window is Window.BEFORE else b""
    await peer.send(head + b"".join(chunked(bytes([byte])) for byte in window.rest()) + END)


async def dribble_for_ever(peer: Peer, window: Window) -> None:
    """A line that goes on and on, slowly: a header, a comment, white space in JSON."""
    first, more = {
        Window.BEFORE: (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        Window.ONE_PIECE: (b"", chunked(b" ")),
    }.get(window, (chunked(b":"), chunked(b"x")))
    await peer.send(first)
    await for_ever(more)(peer, window)


async def flood(peer: Peer, window: Window) -> None:
    """The same without a pause: a header, an event, or white space that does not end."""
    first, more = {
        Window.BEFORE: (b"HTTP/1.1 200 OK\r\nX-Huge: ", b"x" * 9000),
        Window.ONE_PIECE: (b"", chunked(b" " * 90_000)),
    }.get(window, (chunked(b"data: "), chunked(b"x" * 9000)))
    await peer.send(first)
    await for_ever(more, pause=0)(peer, window)
