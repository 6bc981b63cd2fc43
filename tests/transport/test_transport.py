"""Our transport and httpx's own on real sockets: equal bytes, equal errors, and no open connections at the end."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quart_openai_sse.flow import Flow
from quart_openai_sse.transport import PushTransport, create_transport
from tests.certificates import Certificates, create_certificates
from tests.raw import CLOSING_HEAD, END, HEAD, Hangup, Peer, chunked, raw_upstream

UNVERIFIED = httpx.create_ssl_context(verify=False)  # made once, since it takes long
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def ours(module: Any = httpx, **options: Any) -> Any:
    """Our transport."""
    return create_transport(module)(**{"verify": UNVERIFIED, "keepalive_expiry": 60, **options})


def theirs(module: Any = httpx, *, verify: ssl.SSLContext = UNVERIFIED, **limits: Any) -> Any:
    """httpx's transport."""
    return module.AsyncHTTPTransport(verify=verify, limits=module.Limits(**{"keepalive_expiry": 60, **limits}))


class Kind(NamedTuple):
    """A transport under test: its library, and whether it is ours."""

    module: Any
    create: Callable[..., Any]

    def __call__(self, **options: Any) -> Any:
        return self.create(self.module, **options)

    def request(self, url: str, *, method: str = "GET", timeout: Any = (5, 5, 5, 5), **options: Any) -> Any:
        extensions = {"timeout": self.module.Timeout(timeout).as_dict(), **options.pop("extensions", {})}
        return self.module.Request(method, url, extensions=extensions, **options)

    def ways(self) -> tuple[bool, ...]:
        """Whether bodies are pushed; for a transport that can push, both ways are tested."""
        return (False, True) if self.create is ours else (False,)

    def error(self, name: str) -> type[Exception]:
        found: type[Exception] = getattr(self.module, name)
        return found


OURS = {"ours, httpx": Kind(httpx, ours), "ours, httpx2": Kind(httpx2, ours)}
KINDS = {**OURS, "httpx's": Kind(httpx, theirs), "httpx2's": Kind(httpx2, theirs)}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both_of_ours = pytest.mark.parametrize("kind", OURS.values(), ids=OURS)
OWN = OURS["ours, httpx"]


def sends(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A server that sends *pieces* and closes the connection."""

    async def answer(peer: Peer) -> None:
        for piece in pieces:
            await peer.send(piece)
        raise Hangup

    return answer


def keeps(data: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A server that sends this in response to each request and keeps the connection."""

    async def answer(peer: Peer) -> None:
        await peer.send(data)

    return answer


async def silent(peer: Peer) -> None:
    await peer.gone()


@asynccontextmanager
async def listening(handler: Callable[[Any, Any], Awaitable[None]], **options: Any) -> AsyncIterator[str]:
    """Serves *handler*, which gets the streams of each connection. Yields the address."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            await handler(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, **options)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


# Errors -------------------------------------------------------------------------------------------------------------


async def half_and_silent(peer: Peer) -> None:
    await peer.send(HEAD + chunked(b"half"))
    await peer.gone()


async def reset(peer: Peer) -> None:
    await peer.reset()


LONG = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1000) for number in range(1000)) + b"\r\n"

BOTH = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab") + END
IRREGULAR = {
    "a length and chunks": BOTH,
    "chunks and a length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 99\r\n\r\n"
    + chunked(b"ab")
    + END,
    "chunks and a length of 0": BOTH.replace(b": 1", b": 0"),
    "chunks and the same length twice": BOTH.replace(b"Length: 1\r\n", b"Length: 1\r\nContent-Length:1\r\n"),
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\nCONTENT-LENGTH:2 \r\n\r\nab",
    "the same length three times, without CR": b"HTTP/1.1 200 OK\n" + b"Content-Length: 2\n" * 3 + b"\nab",
    "a list of one length": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
    "the same length twice after hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "a folded line": b"HTTP/1.1 200 OK\r\nX: a,\r\n b\r\nContent-Length: 2\r\n\r\nab",
    "a folded last line, without CR": b"HTTP/1.1 200 OK\nContent-Length: 2\nX: a\n\tb\n\nab",
    "a line that is folded before its value": b"HTTP/1.1 200 OK\r\nX:\r\n  b\r\n \r\nContent-Length: 2\r\n\r\nab",
    "control characters": b"HTTP/1.1 200 OK\r\nX: a\x01b\x7f\r\nContent-Length: 2\r\n\r\nab",
    "a folded line, a control character and the same length twice": b"HTTP/1.1 200 OK\r\nX: a\r\n b\x1f\r\n"
    b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
}
"""Responses with heads that are not regular, and say where their body ends: RFC 9112, 5.2 and 6.3; RFC 9110, 5.5."""

FAULTS: dict[str, tuple[Callable[[Peer], Awaitable[None]], str, bytes | None]] = {
    "closed before the head": (sends(), "RemoteProtocolError", None),
    "reset before the head": (reset, "ReadError", None),
    "silent before the head": (silent, "ReadTimeout", None),
    "silent in the head": (keeps(b"HTTP/1.1 200 OK\r\nConte"), "ReadTimeout", None),
    "half a head": (sends(b"HTTP/1.1 200 OK\r\nConte"), "RemoteProtocolError", None),
    "no HTTP": (sends(b"220 smtp.example ESMTP\r\n"), "RemoteProtocolError", None),
    "another protocol": (sends(OK.replace(b"HTTP/1.1", b"RTSP/1.0")), "RemoteProtocolError", None),
    "an empty line before": (sends(b"\r\n" + OK), "RemoteProtocolError", None),
    "a head without end": (sends(LONG.rstrip()), "RemoteProtocolError", None),
    "an endless head that is too long": (sends(LONG), "RemoteProtocolError", None),
    "two lengths": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        "RemoteProtocolError",
        None,
    ),
    "two lengths beside chunks": (
        sends(BOTH.replace(b"Length: 1\r\n", b"Length: 1\r\nContent-Length: 2\r\n")),
        "RemoteProtocolError",
        None,
    ),
    "a list of two lengths": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nabc"),
        "RemoteProtocolError",
        None,
    ),
    "a coding nobody asked for, and a length": (
        sends(BOTH.replace(b"chunked", b"gzip, chunked", 1)),
        "RemoteProtocolError",
        None,
    ),
    "chunks that are not the last coding, and a length": (
        sends(BOTH.replace(b"chunked", b"chunked, gzip", 1)),
        "RemoteProtocolError",
        None,
    ),
    "an unknown coding and a length": (sends(BOTH.replace(b"chunked", b"other", 1)), "RemoteProtocolError", None),
    "a length that is none": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab"), "RemoteProtocolError", None),
    "a negative length": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab"), "RemoteProtocolError", None),
    "a coding nobody asked for": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b"ab") + END),
        "RemoteProtocolError",
        None,
    ),
    "only a 100": (sends(b"HTTP/1.1 100 Continue\r\n\r\n"), "RemoteProtocolError", None),
    "a shorter body than its length": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"),
        "RemoteProtocolError",
        b"ab",
    ),
    "chunks without an end": (sends(HEAD + chunked(b"ab")), "RemoteProtocolError", b"ab"),
    "half a chunk": (sends(HEAD + b"5\r\nab"), "RemoteProtocolError", b"ab"),
    "half a last chunk": (sends(HEAD + chunked(b"ab") + b"0\r\n"), "RemoteProtocolError", b"ab"),
    "half a trailer": (sends(HEAD + chunked(b"ab") + b"0\r\nX: y\r\n"), "RemoteProtocolError", b"ab"),
    "a chunk longer than its size": (sends(HEAD + b"2\r\nabc\r\n" + END), "RemoteProtocolError", b"ab"),
    "a size that is none": (sends(HEAD + chunked(b"ab") + b"xyz\r\n"), "RemoteProtocolError", b"ab"),
    "a size beyond all": (sends(HEAD + b"f" * 30 + b"\r\nab"), "RemoteProtocolError", b""),
    "silent in the middle": (half_and_silent, "ReadTimeout", b"half"),
}


class Outcome(NamedTuple):
    """The result of a request."""

    error: str
    """The name of the exception, or ""."""
    body: bytes | None = None
    """`None` if there was no response."""
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()


async def outcome(kind: Kind, transport: Any, request: Any, *, push: bool = False, on_data: Any = None) -> Outcome:
    """Sends *request* and reads the response. Errors are a part of the outcome."""
    body = bytearray()

    def feed(data: bytes) -> Flow:
        body.extend(data)
        if on_data is not None:
            on_data()
        return Flow.MORE

    try:
        response = await transport.handle_async_request(request)
    except kind.error("TransportError") as error:
        return Outcome(type(error).__name__)
    try:
        if push:
            assert await response.extensions["push"](feed) is Flow.MORE
        else:
            async for data in response.aiter_raw():
                feed(data)
    except kind.error("TransportError") as error:
        return Outcome(type(error).__name__, bytes(body), response.status_code)
    finally:
        await response.aclose()
    return Outcome("", bytes(body), response.status_code, tuple(response.headers.raw))


@every_kind
@pytest.mark.parametrize(("handler", "error", "body"), FAULTS.values(), ids=FAULTS)
async def test_each_fault_has_its_own_error(
    kind: Kind, handler: Callable[[Peer], Awaitable[None]], error: str, body: bytes | None
) -> None:
    patience = 0.1 if error == "ReadTimeout" else 20
    async with raw_upstream(handler) as server:
        for push in kind.ways():
            async with kind() as transport:
                request = kind.request(server.base_url, timeout=(5, patience, 5, 5))
                assert (await outcome(kind, transport, request, push=push))[:2] == (error, body)


ENDLESS = {
    "informational answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 100),
    "chunk extensions": (HEAD + b"1", b";x" * 100),
    "trailers": (HEAD + b"0\r\n", b"X: y\r\n"),
}


@both_of_ours
@pytest.mark.parametrize(("beginning", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_headers_trailers_and_chunk_extensions_have_a_limit(kind: Kind, beginning: bytes, more: bytes) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(beginning)
        while True:
            await peer.send(more * 100)

    async with raw_upstream(answer) as server, kind() as transport:
        assert (await outcome(kind, transport, kind.request(server.base_url))).error == "RemoteProtocolError"
        assert transport._pool._all == set()


@both_of_ours
async def test_a_hint_has_no_body(kind: Kind) -> None:
    """The transport does not wait for the rest of such a body."""
    hint = keeps(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\nabc")
    async with raw_upstream(hint) as server, kind() as transport:
        assert await outcome(kind, transport, kind.request(server.base_url)) == Outcome("RemoteProtocolError")
        assert transport._pool._all == set()


@both_of_ours
async def test_a_server_may_speak_first(kind: Kind) -> None:
    """An overloaded server may respond before it has read anything."""

    async def overloaded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\nno")

    async with listening(overloaded) as address, kind() as transport:
        assert (await outcome(kind, transport, kind.request(f"http://{address}/")))[:3] == ("", b"no", 503)


@every_kind
@pytest.mark.parametrize("wire", [HEAD + chunked(b"half"), CLOSING_HEAD + b"half"], ids=["chunks", "until the end"])
async def test_a_reset_in_the_middle_is_a_read_error_after_what_had_come(kind: Kind, wire: bytes) -> None:
    for push in kind.ways():
        arrived = asyncio.Event()

        async def answer(peer: Peer, arrived: asyncio.Event = arrived) -> None:
            await peer.send(wire)
            await arrived.wait()
            await peer.reset()

        async with raw_upstream(answer) as server, kind() as transport:
            found = await outcome(kind, transport, kind.request(server.base_url), push=push, on_data=arrived.set)
            assert found[:2] == ("ReadError", b"half")


@contextmanager
def full(host: str, port: int = 0) -> Iterator[str]:
    """A listener with a full queue: a connection is neither accepted nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://{host}:{listener.getsockname()[1]}/"


@every_kind
async def test_a_closed_port_a_silent_host_and_an_unknown_name_are_connect_errors(kind: Kind) -> None:
    async with kind() as transport:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            request = kind.request(f"http://127.0.0.1:{bound.getsockname()[1]}/")
            assert (await outcome(kind, transport, request)).error == "ConnectError"
        with full("127.0.0.1") as url:
            request = kind.request(url, timeout=(0.1, 5, 5, 5))
            assert (await outcome(kind, transport, request)).error == "ConnectTimeout"
        assert (await outcome(kind, transport, kind.request("ftp://127.0.0.1/"))).error == "UnsupportedProtocol"


@both_of_ours
async def test_a_name_that_is_none_is_a_connect_error(kind: Kind) -> None:
    async with kind() as transport:
        request = kind.request(f"http://{'a' * 64}.example/")  # a label has 63 characters at most
        assert (await outcome(kind, transport, request)).error == "ConnectError"


@every_kind
async def test_a_server_that_takes_no_request_is_a_write_timeout(kind: Kind) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    async with listening(deaf) as address, kind() as transport:
        request = kind.request(f"http://{address}/", method="POST", content=bytes(20 << 20), timeout=(5, 5, 0.1, 5))
        assert (await outcome(kind, transport, request)).error == "WriteTimeout"


@every_kind
@pytest.mark.parametrize("name", ["X-A\r\nB", "X A", "X:A", ""])
async def test_a_header_cannot_be_smuggled_into_a_request_by_its_name(kind: Kind, name: str) -> None:
    async with raw_upstream(keeps(OK)) as server, kind() as transport:
        request = kind.request(server.base_url, headers={name: "v"})
        assert (await outcome(kind, transport, request)).error == "LocalProtocolError"
        assert server.requests == []


@every_kind
@pytest.mark.parametrize("value", ["v\r\nX-B: c", "v\nX-B: c", "v\rw", "v\0w"])
async def test_a_header_cannot_be_smuggled_into_a_request_by_its_value(kind: Kind, value: str) -> None:
    async with raw_upstream(keeps(OK)) as server, kind() as transport:
        request = kind.request(server.base_url, headers={"X-A": value})
        assert (await outcome(kind, transport, request)).error == "LocalProtocolError"
        assert server.requests == []


# What is whole ------------------------------------------------------------------------------------------------------

WHOLE: dict[str, tuple[str, bytes, bytes]] = {
    "a length": ("GET", OK, b"ok"),
    "no body": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunks": ("GET", HEAD + chunked(b"a") + chunked(b"b") + END, b"ab"),
    "chunks with extensions": ("GET", HEAD + b'1;x=y;z="q"\r\na\r\n0;end\r\n\r\n', b"a"),
    "padded sizes": ("GET", HEAD + b"0001  \r\na\r\n" + END, b"a"),
    "trailers": ("GET", HEAD + chunked(b"a") + b"0\r\nX: y\r\nZ:\r\n\r\n", b"a"),
    "until the end": ("GET", CLOSING_HEAD + b"all of it", b"all of it"),
    "until the end, without a word": ("GET", b"HTTP/1.1 200 OK\r\n\r\nall of it", b"all of it"),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\n\r\nall of it", b"all of it"),
    "lines without CR": ("GET", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
    "after a 100": ("GET", b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
    "after hints": ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 199 X\r\n\r\n" + OK, b"ok"),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b""),
    "HEAD of chunks": ("HEAD", HEAD, b""),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b""),
    "no reason": ("GET", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    "a large body": ("GET", HEAD + chunked(b"x" * 1_000_000) + END, b"x" * 1_000_000),
    **{name: ("GET", wire, b"ab") for name, wire in IRREGULAR.items()},
    "HEAD with two lengths": ("HEAD", IRREGULAR["the same length twice"].removesuffix(b"ab"), b""),
    "204 with a length and chunks": (
        "GET",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"",
    ),
}


@every_kind
@pytest.mark.parametrize(("method", "wire", "body"), WHOLE.values(), ids=WHOLE)
async def test_a_whole_answer_is_whole(kind: Kind, method: str, wire: bytes, body: bytes) -> None:
    async with raw_upstream(sends(wire)) as server:
        for push in kind.ways():
            async with kind() as transport:
                request = kind.request(server.base_url, method=method)
                assert (await outcome(kind, transport, request, push=push))[:2] == ("", body)


@every_kind
async def test_a_request_may_be_streamed(kind: Kind) -> None:
    """In chunks, if its length is not known."""

    async def content() -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two"):
            yield piece

    received = asyncio.get_running_loop().create_future()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(OK)

    async with listening(server) as address, kind() as transport:
        request = kind.request(f"http://{address}/", method="POST", content=content())
        assert (await outcome(kind, transport, request)).body == b"ok"
    head, _, body = (await received).partition(b"\r\n\r\n")
    assert head.startswith(b"POST / HTTP/1.1\r\n")
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@every_kind
async def test_an_answer_that_comes_before_the_request_was_sent_counts(kind: Kind) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    timeouts = (5, 5, 0.1 if kind.create is theirs else 20, 5)
    async with listening(refuse) as address, kind() as transport:
        request = kind.request(f"http://{address}/", method="POST", content=bytes(20 << 20), timeout=timeouts)
        found = await outcome(kind, transport, request)
        # httpcore reads the response only after it has sent the whole request.
        assert found[:3] == (("WriteTimeout", None, 0) if kind.create is theirs else ("", b"no", 413))
        assert kind.create is theirs or transport._pool._all == set()  # the request was not sent completely


# Heads that are irregular ------------------------------------------------------------------------------------------


@both_of_ours
@pytest.mark.parametrize("wire", IRREGULAR.values(), ids=IRREGULAR)
async def test_after_an_irregular_head_the_connection_is_closed(kind: Kind, wire: bytes) -> None:
    """Another reader could end the body elsewhere: what follows on the connection must be no response of ours."""
    async with raw_upstream(keeps(wire + OK)) as server:
        for push in kind.ways():
            async with kind() as transport:
                before = server.connections
                for _ in range(3):
                    found = await outcome(kind, transport, kind.request(server.base_url), push=push)
                    assert found[:2] == ("", b"ab")
                    assert transport._pool._all == set()
                assert server.connections == before + 3


@both_of_ours
async def test_no_request_that_waits_gets_the_connection_of_an_ambiguous_head(kind: Kind) -> None:
    async with raw_upstream(keeps(BOTH)) as server, kind(max_connections=1) as transport:
        found = await asyncio.gather(*(outcome(kind, transport, kind.request(server.base_url)) for _ in range(4)))
        assert {each.body for each in found} == {b"ab"}
        assert server.connections == 4


@both_of_ours
@pytest.mark.parametrize("wire", IRREGULAR.values(), ids=IRREGULAR)
async def test_an_irregular_head_may_arrive_byte_by_byte(kind: Kind, wire: bytes) -> None:
    pieces = [wire[place : place + 1] for place in range(len(wire))]
    for push in kind.ways():
        assert (await through(kind, pieces, method="GET", push=push))[:2] == ("", b"ab")


@both_of_ours
async def test_a_folded_line_and_a_control_character_are_a_space(kind: Kind) -> None:
    wire = b"HTTP/1.1 200 OK\r\nX: a,\r\n \tb\x01c\r\nContent-Length: 2\r\n\r\nab"
    found = await through(kind, [wire], method="GET", push=False)
    assert dict(found.headers)[b"X"] == b"a, b c"


REFUSED_HEADS = {
    "a first line that is folded": b"HTTP/1.1 200 OK\r\n X: a\r\n",
    "a folded length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n 2\r\n",
    "a folded length of nothing more": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n \r\n",
    "a folded transfer coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chun\r\n ked\r\n",
    "a folded line beside a folded length": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length:\r\n 2\r\n",
    "a control character in a length": b"HTTP/1.1 200 OK\r\nX: a\x01\r\nContent-Length: 2\x01\r\n",
    "a control character in a name": b"HTTP/1.1 200 OK\r\nX: a\x01\r\nX\x01: a\r\n",
    "a NUL": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n",
    "a CR": b"HTTP/1.1 200 OK\r\nX: a\rb\r\n",
}


@both_of_ours
@pytest.mark.parametrize("head", REFUSED_HEADS.values(), ids=REFUSED_HEADS)
async def test_every_other_head_that_is_irregular_is_refused(kind: Kind, head: bytes) -> None:
    for push in kind.ways():
        found = await through(kind, [head + b"X-Y: z\r\n\r\nab"], method="GET", push=push)
        assert found[:2] == ("RemoteProtocolError", None)


@both_of_ours
async def test_a_head_that_goes_on_after_its_second_length_has_a_limit(kind: Kind) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n")
        while True:
            await peer.send(b"X: y\r\n" * 1000)

    async with raw_upstream(answer) as server, kind() as transport:
        assert (await outcome(kind, transport, kind.request(server.base_url))).error == "RemoteProtocolError"
        assert transport._pool._all == set()


# Any cut of any response --------------------------------------------------------------------------------------------

tokens = st.text("abcXYZ-0189", min_size=1, max_size=8).map(lambda text: f"X-{text}".encode())
values = st.text('abc ,;=\t"\xe9', max_size=12).map(lambda text: text.strip().encode("latin-1"))
headers = st.lists(st.tuples(tokens, values).map(lambda pair: b"%b: %b\r\n" % pair), max_size=3).map(b"".join)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
extensions = st.sampled_from([b"", b";x", b";x=y", b';x="y z"'])  # and no spaces: see DIFFERENCES


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    form = draw(st.sampled_from([b"%x", b"%X", b"00%x"]))
    body = b"".join(form % len(each) + draw(extensions) + b"\r\n" + each + b"\r\n" for each in draw(bodies))
    return body + b"0" + draw(extensions) + b"\r\n" + draw(headers) + b"\r\n"


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """The header lines that describe the body, the end of the head, and the body."""
    body = b"".join(draw(bodies))
    more = draw(headers)
    match draw(st.sampled_from(["length", "lie", "chunks", "close", "nothing", "twice", "both"])):
        case "length":
            return b"%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body)
        case "lie":
            return b"%bContent-Length: %d\r\n\r\n%b" % (more, draw(st.integers(0, 100)), body)
        case "chunks":
            return b"%bTransfer-Encoding: chunked\r\n\r\n%b" % (more, draw(chunks()))
        case "twice":
            line = b"Content-Length: %d\r\n" % len(body)
            return b"%b%b%b\r\n%b" % (line, more, line, body)
        case "both":
            lines = [b"Content-Length: %d\r\n" % draw(st.integers(0, 100)), b"Transfer-Encoding: chunked\r\n"]
            return b"%b%b\r\n%b" % (b"".join(draw(st.permutations(lines))), more, draw(chunks()))
        case "close":
            return b"%bConnection: close\r\n\r\n%b" % (more, body)
        case _:
            return b"%b\r\n%b" % (more, body)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """A response that is well-formed except for its length, and bytes after it."""
    informational = draw(st.lists(st.sampled_from([b"100 Continue", b"102 P", b"103 Early Hints"]), max_size=2))
    before = b"".join(b"HTTP/1.1 %b\r\n%b\r\n" % (line, draw(headers)) for line in informational)
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    status = draw(
        st.sampled_from([b"200 OK", b"200 OK", b"200", b"204 No Content", b"304 X", b"404 Not Found", b"503 "])
    )
    after = draw(st.sampled_from([b"", b"", b"\r\n", b"garbage", OK]))
    return b"%bHTTP/%b %b\r\n%b%b" % (before, version, status, draw(framed()), after)


@st.composite
def cut(draw: st.DrawFn, wires: st.SearchStrategy[bytes]) -> list[bytes]:
    """A response in any pieces, whole or truncated."""
    wire = draw(wires)
    if draw(st.booleans()):
        wire = wire[: draw(st.integers(0, len(wire)))]
    places = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    return [wire[start:end] for start, end in zip([0, *places], [*places, len(wire)], strict=True) if start < end]


async def through(kind: Kind, pieces: Iterable[bytes], *, method: str, push: bool) -> Outcome:
    """The outcome of a response in *pieces*, each of which is one read."""

    async def answer(peer: Peer) -> None:
        for piece in pieces:
            await peer.send(piece)
            for _ in range(4):
                await asyncio.sleep(0)
        raise Hangup

    async with raw_upstream(answer) as server, kind() as transport:
        return await outcome(kind, transport, kind.request(server.base_url, method=method), push=push)


async def all_ways(pieces: list[bytes], method: str) -> tuple[Outcome, Outcome, Outcome]:
    """The outcomes with httpx's transport, and with ours, iterated and pushed."""
    theirs_ = await through(KINDS["httpx's"], pieces, method=method, push=False)
    return theirs_, *[await through(OWN, pieces, method=method, push=push) for push in (False, True)]  # type: ignore[return-value]


def without_overridden_length(found: Outcome) -> Outcome:
    """RFC 9112, 6.3, asks to remove a length that chunks override. httpx keeps it in the headers."""
    names = [name.lower() for name, _ in found.headers]
    if b"transfer-encoding" not in names:
        return found
    return found._replace(headers=tuple(pair for pair in found.headers if pair[0].lower() != b"content-length"))


methods = st.sampled_from(["GET", "GET", "HEAD"])
thorough = settings(
    deadline=None,
    max_examples=int(os.environ.get("TRANSPORT_EXAMPLES", "150")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@thorough
@given(cut(responses()), methods)
@example([HEAD, chunked(b"a") + END], "GET")
@example([CLOSING_HEAD, b"a"], "GET")
@example([b"HTTP/1.1 204 No Content\r\n\r\n" + OK], "GET")
def test_any_cut_of_any_response_is_the_same_through_both_transports(pieces: list[bytes], method: str) -> None:
    httpxs, iterated, pushed = asyncio.run(all_ways(pieces, method))
    assert iterated == without_overridden_length(httpxs)
    assert pushed == iterated


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """A response with some bytes replaced."""
    wire = draw(responses())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(wire)))
        other = draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\n", b" ", b"0", b"chunked", b"Content-Length: 3\r\n"])
        )
        wire = wire[:start] + other + wire[start + draw(st.integers(0, 4)) :]
    return wire


@thorough
@given(cut(garbled()), methods)
def test_garbled_responses_are_never_read_as_two_different_ones(pieces: list[bytes], method: str) -> None:
    """h11 and llhttp refuse different responses (see DIFFERENCES), but read those that both accept alike."""
    httpxs, iterated, pushed = asyncio.run(all_ways(pieces, method))
    assert pushed == iterated
    if not httpxs.error and not iterated.error:
        assert (iterated.status, iterated.body) == (httpxs.status, httpxs.body)


# Responses that only one of h11 (httpx's) and llhttp (ours) refuses; the property above covers those that both accept.
REFUSED = Outcome("RemoteProtocolError")
TAKEN = Outcome("", b"ab", 200)
LENGTH = b"Content-Length: 2\r\n\r\nab"
DIFFERENCES: dict[str, tuple[bytes, Outcome, Outcome]] = {
    # RFC 9110, 6.5.1: no trailer may say how a message is framed
    "a length as a trailer": (HEAD + chunked(b"ab") + b"0\r\nContent-Length: 9\r\n\r\n", REFUSED, TAKEN),
    "hints with a length twice": (
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH,
        REFUSED,
        TAKEN,
    ),
    # RFC 9112, 5.2, lets a client unfold a line. We do not where it says how long the body is.
    "a folded length": (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 2\r\n\r\nab", REFUSED, TAKEN),
    "a folded transfer coding": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n" + chunked(b"ab") + END,
        REFUSED,
        TAKEN,
    ),
    # RFC 9112, 2.3: HTTP/1.1's framing is that of HTTP/1
    "a version to come": (b"HTTP/2.0 200 OK\r\n" + LENGTH, REFUSED, TAKEN),
    # RFC 9110, 15.2: an informational answer has no body, and does not close a connection
    "a 100 that closes": (
        b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH,
        REFUSED,
        TAKEN,
    ),
    "a 104 with a length": (b"HTTP/1.1 104 X\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH, REFUSED, TAKEN),
    # RFC 9112, 7.1.1 allows spaces around an extension's ";". llhttp takes those before it, h11 those after it.
    "a space after an extension's semicolon": (HEAD + b"2; x=y\r\nab\r\n" + END, REFUSED, TAKEN),
    "a space before an extension's semicolon": (HEAD + b"2 ;x=y\r\nab\r\n" + END, TAKEN, REFUSED),
    "an extension that is no token": (HEAD + b"2;@(\r\nab\r\n" + END, REFUSED, TAKEN),
    # Each beyond 64 bits: refused at once, or when the connection ends.
    "a length beyond all": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nab",
        REFUSED,
        Outcome("RemoteProtocolError", b"ab", 200),
    ),
}


@pytest.mark.parametrize(("wire", "of_ours", "of_httpxs"), DIFFERENCES.values(), ids=DIFFERENCES)
async def test_the_known_differences(wire: bytes, of_ours: Outcome, of_httpxs: Outcome) -> None:
    httpxs, iterated, pushed = await all_ways([wire], "GET")
    assert iterated == pushed
    assert iterated.error == of_ours.error
    assert httpxs.error == of_httpxs.error
    assert {each.body for each in (iterated, httpxs) if not each.error} <= {b"ab"}


# Pushing ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def streaming(kind: Kind, handler: Callable[[Peer], Awaitable[None]], **options: Any) -> AsyncIterator[Any]:
    """The response of *handler*."""
    async with raw_upstream(handler) as server, kind(**options) as transport:
        response = await transport.handle_async_request(kind.request(server.base_url))
        try:
            yield response
        finally:
            await response.aclose()


@both_of_ours
async def test_all_that_one_read_brings_is_one_piece(kind: Kind) -> None:
    head_is_read, fed = asyncio.Event(), []

    async def answer(peer: Peer) -> None:
        await peer.send(HEAD)
        await head_is_read.wait()
        await peer.send(chunked(b"a") + chunked(b"b") + chunked(b"c") + END)

    def feed(data: bytes) -> Flow:
        fed.append(data)
        return Flow.MORE

    async with streaming(kind, answer) as response:
        head_is_read.set()
        assert await response.extensions["push"](feed) is Flow.MORE
    assert fed == [b"abc"]


@both_of_ours
async def test_bytes_that_were_not_fed_are_kept_for_the_next_read(kind: Kind) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(b"one"))
        for piece in (b"two", b"three"):
            await fed.wait()
            fed.clear()
            await peer.send(chunked(piece))
        await peer.send(END)

    fed, pieces = asyncio.Event(), []

    def feed(data: bytes) -> Flow:
        pieces.append(data)
        fed.set()
        return Flow.PAUSE

    async with streaming(kind, answer) as response:
        push = response.extensions["push"]
        assert await push(feed) is Flow.PAUSE
        assert await push(feed) is Flow.PAUSE
        rest = b"".join([data async for data in response.aiter_raw()])
        assert b"".join(pieces) + rest == b"onetwothree"
        assert await push(feed) is Flow.MORE  # nothing was left
    assert pieces == [b"one", b"two"]


@both_of_ours
async def test_the_end_that_comes_with_the_last_bytes_is_known_at_once(kind: Kind) -> None:
    async with streaming(kind, keeps(HEAD + chunked(b"all") + END)) as response:
        push = response.extensions["push"]
        assert await push(lambda _: Flow.PAUSE) is Flow.PAUSE
        with pytest.raises(StopIteration) as ended:  # without a turn of the event loop
            push(lambda _: Flow.MORE).send(None)
        assert ended.value.value is Flow.MORE


@both_of_ours
async def test_push_raises_the_error_of_the_feed(kind: Kind) -> None:
    def feed(data: bytes) -> Flow:
        raise KeyError(data)

    for pieces in ([HEAD, chunked(b"x")], [HEAD + chunked(b"x")]):  # while it is waited for, and before

        async def answer(peer: Peer, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(0.01)
            await peer.gone()

        async with streaming(kind, answer) as response:
            with pytest.raises(KeyError):
                await response.extensions["push"](feed)


@both_of_ours
async def test_a_feed_may_cancel_its_own_task(kind: Kind) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD)
        await peer.send(chunked(b"x") + END)

    async def push() -> None:
        async with streaming(kind, answer) as response:
            await response.extensions["push"](lambda data: task.cancel())

    task = asyncio.ensure_future(push())
    await asyncio.wait({task})
    assert task.cancelled()


@both_of_ours
@pytest.mark.parametrize("way", ["pushed", "iterated"])
async def test_cancelling_closes_the_connection_without_a_further_word(kind: Kind, way: str) -> None:
    async with raw_upstream(half_and_silent) as server, kind() as transport:
        response = await transport.handle_async_request(kind.request(server.base_url))
        pieces = response.stream.__aiter__()
        assert await anext(pieces) == b"half"
        reading = asyncio.ensure_future(
            response.extensions["push"](lambda _: Flow.MORE) if way == "pushed" else anext(pieces)
        )
        await asyncio.sleep(0)
        reading.cancel()
        await server.closed.get()
        assert reading.cancelled()
        assert transport._pool._all == set()


@both_of_ours
@pytest.mark.parametrize("pushed", [True, False], ids=["pushed", "never asked for"])
async def test_a_server_that_sends_more_than_is_wanted_has_to_wait(kind: Kind, pushed: bool) -> None:
    pieces, sent, stuck = 200, 0, asyncio.Event()
    piece = chunked(bytes(1 << 20))

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.send(HEAD)
        for _ in range(pieces):
            sending = asyncio.ensure_future(peer.send(piece))
            if not (await asyncio.wait({sending}, timeout=0.3))[0]:
                stuck.set()
            await sending
            sent += 1
        await peer.send(END)

    async with streaming(kind, flood) as response:
        held = 0

        def feed(data: bytes) -> Flow:
            nonlocal held
            held += len(data)
            return Flow.PAUSE

        if pushed:
            assert await response.extensions["push"](feed) is Flow.PAUSE
        await stuck.wait()
        assert sent < 16  # most of it is in the kernel's buffers
        exchange = response.stream._exchange
        assert sum(map(len, exchange._pieces)) <= 128 << 10  # two reads
        async for data in response.aiter_raw():
            held += len(data)
        assert held == pieces << 20


# Connections --------------------------------------------------------------------------------------------------------

REUSE: dict[str, tuple[str, bytes, bool]] = {
    "a length": ("GET", OK, True),
    "chunks": ("GET", HEAD + chunked(b"a") + END, True),
    "no content": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", True),
    "after a 103": ("GET", b"HTTP/1.1 103 X\r\n\r\n" + OK, True),
    "HTTP/1.0 that keeps": ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", True),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
    "HTTP/1.0 with chunks": (
        "GET",
        HEAD.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n") + END,
        False,
    ),
    "Connection: close": ("GET", OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
    "bytes after the end": ("GET", OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", False),
    "an answer without a body after the end": ("GET", OK + b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "half an answer after the end": ("GET", OK + b"HTTP/1.1 20", False),
    "garbage after the end": ("GET", OK + b"?", False),
    "garbage after a HEAD": ("HEAD", HEAD + b"?\r\n", False),
    "bytes after the last chunk": ("GET", HEAD + END + b"x", False),
    "a body for HEAD": ("HEAD", OK, False),
    "a body for 204": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", False),
}


@both_of_ours
@pytest.mark.parametrize(("method", "wire", "again"), REUSE.values(), ids=REUSE)
async def test_a_connection_is_used_again_only_where_nothing_can_be_left_on_it(
    kind: Kind, method: str, wire: bytes, again: bool
) -> None:
    async with raw_upstream(keeps(wire)) as server, kind() as transport:
        for _ in range(3):
            found = await outcome(kind, transport, kind.request(server.base_url, method=method))
            assert found.error == ""
            assert found.body != b"evil"
        assert server.connections == (1 if again else 3)


@both_of_ours
async def test_a_connection_that_speaks_unasked_or_closes_is_not_used_again(kind: Kind) -> None:
    for later in (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b""):
        idle = asyncio.Event()

        async def answer(peer: Peer, later: bytes = later, idle: asyncio.Event = idle) -> None:
            await peer.send(OK)
            if not idle.is_set():
                await idle.wait()
                if not later:
                    raise Hangup
                await peer.send(later)

        async with raw_upstream(answer) as server, kind() as transport:
            assert (await outcome(kind, transport, kind.request(server.base_url))).body == b"ok"
            idle.set()
            while transport._pool._all:
                await asyncio.sleep(0)
            assert (await outcome(kind, transport, kind.request(server.base_url))).body == b"ok"
            assert server.connections == 2


@both_of_ours
@pytest.mark.parametrize("resend", [True, False])
async def test_a_request_is_sent_again_only_if_that_was_asked_for(kind: Kind, resend: bool) -> None:
    async def hangs_up_on_the_second(peer: Peer) -> None:
        if len(server.requests) == 2:
            raise Hangup
        await peer.send(OK)

    async with raw_upstream(hangs_up_on_the_second) as server, kind() as transport:
        extensions = {"resend": resend}
        found = [
            await outcome(
                kind, transport, kind.request(server.base_url, method="POST", content=b"x", extensions=extensions)
            )
            for _ in range(2)
        ]
        assert [each.error for each in found] == ["", "" if resend else "RemoteProtocolError"]
        assert len(server.requests) == (3 if resend else 2)


@both_of_ours
async def test_a_fresh_connection_that_closes_is_no_reason_to_send_again(kind: Kind) -> None:
    async with raw_upstream(sends()) as server, kind() as transport:
        request = kind.request(server.base_url, extensions={"resend": True})
        assert (await outcome(kind, transport, request)).error == "RemoteProtocolError"
        assert len(server.requests) == 1


@both_of_ours
async def test_waiting_for_a_connection_is_fair_and_ends(kind: Kind) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD)
        await go_on.acquire()
        await peer.send(END)

    go_on, order = asyncio.Semaphore(0), []

    async def ask(number: int) -> None:
        order.append((number, await outcome(kind, transport, kind.request(server.base_url))))

    async with raw_upstream(answer) as server, kind(max_connections=1) as transport:
        tasks = []
        for number in range(5):
            tasks.append(asyncio.ensure_future(ask(number)))
            await asyncio.sleep(0)
        while not server.requests:
            await asyncio.sleep(0)
        tasks[2].cancel()
        hurried = kind.request(server.base_url, timeout=(5, 5, 5, 0.01))
        for _ in range(3):
            assert (await outcome(kind, transport, hurried)).error == "PoolTimeout"
        if isinstance(transport, PushTransport):
            assert len(transport._pool._waiters) == 3  # a request that has given up is not a waiter any more
        for _ in range(4):
            go_on.release()
        await asyncio.wait(tasks)
        assert [number for number, found in order if found.error == ""] == [0, 1, 3, 4]
        assert server.connections == 1


@both_of_ours
async def test_a_place_is_shared_by_all_origins(kind: Kind) -> None:
    async with raw_upstream(keeps(OK)) as one, raw_upstream(keeps(OK)) as other, kind(max_connections=1) as transport:
        for server in (one, other, one):
            assert (await outcome(kind, transport, kind.request(server.base_url))).body == b"ok"
        assert (one.connections, other.connections) == (2, 1)

        held = await transport.handle_async_request(kind.request(one.base_url))
        waiting = asyncio.ensure_future(outcome(kind, transport, kind.request(other.base_url)))
        await asyncio.sleep(0)
        await held.aread()
        assert (await waiting).body == b"ok"


@both_of_ours
async def test_only_so_many_are_kept_and_only_for_so_long(kind: Kind) -> None:
    async with raw_upstream(keeps(OK)) as server:
        async with kind(max_keepalive_connections=2) as transport:
            responses = [await transport.handle_async_request(kind.request(server.base_url)) for _ in range(1)]
            found = await asyncio.gather(*(outcome(kind, transport, kind.request(server.base_url)) for _ in range(5)))
            assert {each.body for each in found} == {b"ok"}
            assert len(transport._pool._all) <= 2
            await responses[0].aread()
        async with kind(keepalive_expiry=0.01) as transport:
            assert (await outcome(kind, transport, kind.request(server.base_url))).body == b"ok"
            while transport._pool._all:
                await asyncio.sleep(0.01)
        async with kind(max_keepalive_connections=0, keepalive_expiry=None) as transport:
            assert (await outcome(kind, transport, kind.request(server.base_url))).body == b"ok"
            assert transport._pool._all == set()


@both_of_ours
async def test_closing_the_transport_ends_requests_and_waiters(kind: Kind) -> None:
    async with raw_upstream(half_and_silent) as server:
        transport = kind(max_connections=1)
        reading = asyncio.ensure_future(outcome(kind, transport, kind.request(server.base_url), push=True))
        while not server.requests:
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(outcome(kind, transport, kind.request(server.base_url)))
        await asyncio.sleep(0)
        await transport.aclose()
        assert (await reading).error == "ReadError"
        assert (await waiting).error == "ConnectError"
        await server.closed.get()


STREAMS = int(os.environ.get("TRANSPORT_STREAMS", "1000"))


def left() -> dict[str, int]:
    """The open descriptors and tasks of this process."""
    return {"tasks": len(asyncio.all_tasks()), "descriptors": len(os.listdir("/proc/self/fd"))}


@both_of_ours
@pytest.mark.timeout(max(60, STREAMS // 20))
async def test_streams_that_are_cancelled_at_random_moments_leave_nothing(kind: Kind) -> None:
    """With fewer connections than streams; `TRANSPORT_STREAMS=10000` runs more of them."""
    chance = random.Random(5)

    async def answer(peer: Peer) -> None:
        await peer.send(HEAD)
        for _ in range(4):
            await peer.send(chunked(b"x" * 100))
            await asyncio.sleep(0)
        await peer.send(END)

    async def one(push: bool) -> None:
        request = kind.request(server.base_url, method="POST", content=b"y" * 100, timeout=(20, 20, 20, 20))
        await outcome(kind, transport, request, push=push)

    async def cancelled(number: int) -> None:
        async with at_once:
            task = asyncio.ensure_future(one(number % 2 == 0))
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})

    at_once = asyncio.Semaphore(50)
    async with raw_upstream(answer) as server, kind(max_connections=20) as transport:
        before = left()
        await asyncio.gather(*(cancelled(number) for number in range(STREAMS)))
        pool = transport._pool
        while server.open > pool._idle_count or len(pool._all) > pool._idle_count:
            await asyncio.sleep(0)
        pool.close()
        while left() != before:
            await asyncio.sleep(0.01)
        assert (pool._all, pool._idle, pool._idle_count) == (set(), {}, 0)
        found = await asyncio.gather(*(outcome(kind, transport, kind.request(server.base_url)) for _ in range(40)))
        assert {each.body for each in found} == {b"x" * 400}
        assert len(pool._all) <= 20


@both_of_ours
async def test_a_connection_sends_small_things_at_once(kind: Kind) -> None:
    async with streaming(kind, half_and_silent) as response:
        connection = response.stream._exchange._connection._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@both_of_ours
async def test_one_transport_after_another_event_loop_reads_its_own_bytes(kind: Kind) -> None:
    """All connections of a thread read into one buffer."""
    bodies = [bytes([65 + number]) * 50_000 for number in range(8)]

    async def answer(peer: Peer) -> None:
        number = int(peer.head.split()[1].decode().rpartition("/")[2])
        await peer.send(HEAD)
        for start in range(0, 50_000, 1000):
            await peer.send(chunked(bodies[number][start : start + 1000]))
            await asyncio.sleep(0)
        await peer.send(END)

    async with raw_upstream(answer) as server, kind() as transport:
        requests = [kind.request(f"{server.base_url}/{number}") for number in range(8)]
        found = await asyncio.gather(*(outcome(kind, transport, each, push=True) for each in requests))
        assert [each.body for each in found] == bodies


# Names ----------------------------------------------------------------------------------------------------------------


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Resolves `several.example` to these addresses, IPv6 or IPv4."""
    loop = asyncio.get_running_loop()
    resolve = type(loop).getaddrinfo

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host != "several.example":
            return await resolve(loop, host, port, **options)
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (each, port))
            for family, each in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


@both_of_ours
@pytest.mark.parametrize("first", ["127.0.0.2", "::1", "127.0.0.9"], ids=["refuses", "another family", "is silent"])
async def test_the_first_address_that_answers_is_taken(kind: Kind, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    async with raw_upstream(keeps(OK)) as server, kind() as transport:
        url = server.base_url.replace("127.0.0.1", "several.example")
        with full("127.0.0.9", int(server.base_url.split(":")[2].removesuffix("/v1"))):
            resolving(monkeypatch, first, "127.0.0.3", "127.0.0.1", "127.0.0.4")
            assert (await outcome(kind, transport, kind.request(url))).body == b"ok"
        transport._pool.close()
        resolving(monkeypatch, "127.0.0.2", "127.0.0.3")
        assert (await outcome(kind, transport, kind.request(url))).error == "ConnectError"


@both_of_ours
async def test_whenever_connecting_is_cancelled_no_socket_is_left(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's own happy eyeballs leak a socket that has just been connected."""
    async with raw_upstream(keeps(OK)) as server, kind() as transport:
        resolving(monkeypatch, "127.0.0.1", "127.0.0.1")
        url = server.base_url.replace("127.0.0.1", "several.example")
        before = left()
        for turns in range(60):
            asking = asyncio.ensure_future(outcome(kind, transport, kind.request(url)))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            transport._pool.close()
        while left() != before:
            await asyncio.sleep(0.01)


# TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority, and the certificates of two servers."""
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def tls_server(certificate: Path, handler: Callable[[Any, Any], Awaitable[None]]) -> AsyncIterator[str]:
    """Serves *handler* behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with listening(handler, ssl=context) as address:
        yield f"https://{address}/"


async def answers_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for answer in (HEAD + chunked(b"x" * 100_000) + END, CLOSING_HEAD + b"the end"):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
    writer.close()


@every_kind
async def test_a_server_that_is_trusted_is_spoken_to_and_its_connection_kept(
    kind: Kind, certificates: Certificates
) -> None:
    async with (
        tls_server(certificates.here, answers_twice) as url,
        kind(verify=ssl.create_default_context(cafile=certificates.authority)) as transport,
    ):
        assert (await outcome(kind, transport, kind.request(url)))[:2] == ("", b"x" * 100_000)
        assert (await outcome(kind, transport, kind.request(url)))[:2] == ("", b"the end")


@every_kind
@pytest.mark.parametrize("wrong", ["authority", "host"])
async def test_a_server_with_a_wrong_certificate_gets_no_request(
    kind: Kind, certificates: Certificates, wrong: str
) -> None:
    trusted = ssl.create_default_context(cafile=None if wrong == "authority" else certificates.authority)
    certificate = certificates.elsewhere if wrong == "host" else certificates.here
    async with tls_server(certificate, answers_twice) as url, kind(verify=trusted) as transport:
        assert (await outcome(kind, transport, kind.request(url))).error == "ConnectError"


@every_kind
async def test_a_server_that_speaks_no_tls_or_hangs_up_is_a_connect_error(kind: Kind) -> None:
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            await reader.read(1)
            writer.write(answer)
            writer.close()

        async with listening(plain) as address, kind() as transport:
            assert (await outcome(kind, transport, kind.request(f"https://{address}/"))).error == "ConnectError"


@both_of_ours
async def test_whenever_a_request_behind_tls_is_cancelled_its_connection_is_closed(
    kind: Kind, certificates: Certificates
) -> None:
    async with (
        tls_server(certificates.here, answers_twice) as url,
        kind(verify=ssl.create_default_context(cafile=certificates.authority), max_connections=3) as transport,
    ):
        before = left()
        for turns in range(60):
            asking = asyncio.ensure_future(outcome(kind, transport, kind.request(url), push=True))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
        transport._pool.close()
        while left() != before:
            await asyncio.sleep(0.01)
        assert (await outcome(kind, transport, kind.request(url))).body == b"x" * 100_000


@every_kind
async def test_a_body_that_is_cut_behind_tls_is_not_whole(kind: Kind, certificates: Certificates) -> None:
    async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunked(b"half"))
        await arrived.wait()
        writer.transport.abort()

    for push in kind.ways():
        arrived = asyncio.Event()
        async with (
            tls_server(certificates.here, cuts) as url,
            kind(verify=ssl.create_default_context(cafile=certificates.authority)) as transport,
        ):
            found = await outcome(kind, transport, kind.request(url), push=push, on_data=arrived.set)
            assert found[:2] == ("RemoteProtocolError", b"half")
