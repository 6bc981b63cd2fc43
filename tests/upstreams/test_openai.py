"""The HTTP client on real sockets: what is sent, each deadline, each refusal, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import pytest

from quart_openai_sse import Principal
from quart_openai_sse.config import Config
from quart_openai_sse.errors import (
    ConnectTimeout,
    ErrorValue,
    FirstOutputTimeout,
    GapTimeout,
    OpenAISSEError,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
    UpstreamUnreadable,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import End
from quart_openai_sse.protocol.trace_context import reset_trace_id, set_trace_id
from quart_openai_sse.testing import chunk, finish
from quart_openai_sse.transport import create_transport
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.upstreams.retries import retryable, transferable
from tests.raw import CLOSING_HEAD, END, HEAD, Hangup, Peer, chunked, raw_upstream

ME = Principal("ann")
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
CLIENTS: dict[str, Callable[[], Any] | None] = {
    "own": None,  # over the transport of `--transport`
    "httpx": httpx.AsyncClient,
    "httpx2": httpx2.AsyncClient,
    "httpx over ours": lambda: httpx.AsyncClient(transport=create_transport(httpx)()),
    "httpx2 over ours": lambda: httpx2.AsyncClient(transport=create_transport(httpx2)()),
}


class Collector:
    """A sink that keeps what it is fed; with *wanted* bytes it is *full*."""

    def __init__(self, *, wanted: int | None = None, full: Flow = Flow.ENOUGH) -> None:
        self.started = False
        self.fed = 0.0
        self.data = b""
        self.status = 0
        self.wanted = wanted
        self.full = full

    def head(self, status: int, headers: Any) -> None:
        self.status = status

    def feed(self, data: bytes) -> Flow:
        self.data += data
        self.started = self.started or b"content" in self.data
        self.fed = time.monotonic()
        return Flow.MORE if self.wanted is None or len(self.data) < self.wanted else self.full

    async def room(self) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture(params=CLIENTS, autouse=True)
async def client(request: pytest.FixtureRequest) -> Any:
    """Each client with httpx's API."""
    create = CLIENTS[request.param]
    if create is None:
        yield None
        return
    async with create() as made:
        yield made


def upstream_at(base_url: str, client: Any, **options: Any) -> OpenAIUpstream:
    return OpenAIUpstream(Config(base_url=base_url, **options), client=client)


async def failure(handler: Any, client: Any, body: Any = BODY, **options: Any) -> tuple[OpenAISSEError, Collector]:
    """What a request to *handler* raises."""
    sink = Collector()
    async with raw_upstream(handler) as server:
        upstream = upstream_at(server.base_url, client, **options)
        with pytest.raises(OpenAISSEError) as raised:
            await upstream.run(body, sink, principal=ME)
        await upstream.aclose()
    return raised.value, sink


async def test_what_is_sent(client: Any) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")) + chunked(finish()) + END)

    async def rotating(principal: Principal) -> str:
        return f"key-of-{principal.id}"

    async with raw_upstream(answer) as server:
        upstream = upstream_at(
            server.base_url + "?api-version=1",
            client,
            api_key=rotating,
            organization="org",
            project="proj",
            headers={"X-Extra": "yes"},
        )
        token = set_trace_id("4bf92f3577b34da6a3ce929d0e0e4736")
        sink = Collector()
        await upstream.run({**BODY, "unknown": [1.5]}, sink, principal=ME)
        reset_trace_id(token)
        await upstream.aclose()
        head = server.requests[0].head.decode().lower()
        assert sink.data == chunk("hi") + finish()
    assert head.startswith("post /v1/chat/completions?api-version=1 http/1.1")
    for line in (
        "authorization: bearer key-of-ann",
        "accept-encoding: identity",
        "content-type: application/json",
        "openai-organization: org",
        "openai-project: proj",
        "x-extra: yes",
        "x-trace-id: 4bf92f3577b34da6a3ce929d0e0e4736",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-",
    ):
        assert f"\r\n{line}" in head
    assert json.loads(server.requests[0].body) == {**BODY, "unknown": [1.5]}


async def test_azure_takes_its_key_in_a_header_of_its_own(client: Any) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(finish()) + END)

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client, api_key="azure-key", api_key_header="api-key")
        await upstream.run(BODY, Collector(), principal=ME)
        await upstream.aclose()
        head = server.requests[0].head.lower()
    assert b"\r\napi-key: azure-key\r\n" in head
    assert b"authorization" not in head


async def test_a_connection_is_used_again_also_when_the_end_is_not_asked_for(client: Any) -> None:
    fed = asyncio.Event()

    class Telling(Collector):
        def feed(self, data: bytes) -> Flow:
            fed.set()
            return super().feed(data)

    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(finish()))
        await fed.wait()
        fed.clear()
        await peer.send(END)

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client)
        for _ in range(5):
            await upstream.run(BODY, Telling(wanted=1), principal=ME)
        assert server.connections == 1
        await upstream.aclose()


@pytest.mark.parametrize("client", ["own", "httpx", "httpx2"], indirect=True)  # our transport asks its user first
async def test_a_kept_connection_that_the_server_has_closed_costs_nothing_but_another(client: Any) -> None:
    async def hangs_up_on_the_second(peer: Peer) -> None:
        if len(server.requests) == 2:
            raise Hangup
        await peer.send(HEAD + chunked(finish()) + END)

    async with raw_upstream(hangs_up_on_the_second) as server:
        upstream = upstream_at(server.base_url, client)
        for _ in range(2):
            sink = Collector()
            await upstream.run(BODY, sink, principal=ME)
            assert sink.data == finish()
        assert (len(server.requests), server.connections) == (3, 2)
        await upstream.aclose()


@pytest.mark.parametrize("trust_env", [True, False])
@pytest.mark.parametrize("client", ["own"], indirect=True)  # any other's environment is its owner's affair
async def test_a_proxy_of_the_environment_is_used_where_that_is_trusted(
    client: Any, monkeypatch: pytest.MonkeyPatch, trust_env: bool
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(finish()) + END)

    async with raw_upstream(answer) as proxy, raw_upstream(answer) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        upstream = upstream_at(server.base_url, client, trust_env=trust_env)
        await upstream.run(BODY, Collector(), principal=ME)
        await upstream.aclose()
        asked, address = (proxy, server.base_url) if trust_env else (server, "/v1")
        assert [peer.head.split()[1].decode() for peer in asked.requests] == [f"{address}/chat/completions"]
        assert len(proxy.requests) + len(server.requests) == 1


# Deadlines ----------------------------------------------------------------------------------------------------------


async def stall(peer: Peer) -> None:
    await peer.gone()
    raise Hangup


async def test_silence_before_the_headers_is_the_first_outputs_deadline(client: Any) -> None:
    error, _ = await failure(stall, client, first_output_timeout=0.5)
    assert isinstance(error, FirstOutputTimeout)
    assert (error.status, error.code) == (504, "first_output_timeout")


async def test_empty_deltas_are_no_output(client: Any) -> None:
    async def preamble(peer: Peer) -> None:
        await peer.send(HEAD + chunked(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'))
        await stall(peer)

    error, sink = await failure(preamble, client, first_output_timeout=0.5)
    assert isinstance(error, FirstOutputTimeout)
    assert sink.data


async def test_silence_in_the_middle_is_the_gaps_deadline(client: Any) -> None:
    async def half(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")))
        await stall(peer)

    error, _ = await failure(half, client, gap_timeout=0.3, first_output_timeout=60)
    assert isinstance(error, GapTimeout)


async def test_an_endless_stream_meets_the_whole_ones_deadline(client: Any) -> None:
    async def endless(peer: Peer) -> None:
        await peer.send(HEAD)
        while True:
            await peer.send(chunked(chunk("on ")))
            await asyncio.sleep(0.001)

    error, _ = await failure(endless, client, total_timeout=0.1)
    assert isinstance(error, TotalTimeout)


async def test_an_answer_in_one_piece_may_take_its_time_but_not_for_ever(client: Any) -> None:
    options = {"first_output_timeout": 0.01, "gap_timeout": 0.01, "total_timeout": 0.1}
    error, _ = await failure(stall, client, {**BODY, "stream": False}, **options)
    assert isinstance(error, TotalTimeout)


@pytest.mark.parametrize("client", ["own"], indirect=True)
async def test_a_gap_begins_anew_when_a_slow_reader_is_back(client: Any) -> None:
    class Slow(Collector):
        """Has no room for its first bytes, for longer than a gap may be."""

        async def room(self) -> None:
            await asyncio.sleep(0.9)
            self.wanted, self.back = None, asyncio.get_running_loop().time()

    async def half(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")))
        await stall(peer)

    sink = Slow(wanted=1, full=Flow.PAUSE)
    async with raw_upstream(half) as server:
        upstream = upstream_at(server.base_url, client, gap_timeout=0.6)
        with pytest.raises(GapTimeout):
            await upstream.run(BODY, sink, principal=ME)
        assert asyncio.get_running_loop().time() - sink.back >= 0.6
        await upstream.aclose()


async def test_a_slow_reader_is_not_the_upstreams_gap(client: Any) -> None:
    class Slow(Collector):
        async def room(self) -> None:
            await asyncio.sleep(1)  # ten times the gap that is allowed

    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")))
        await peer.send(chunked(finish()) + END)

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client, gap_timeout=0.1)
        sink = Slow(wanted=1, full=Flow.PAUSE)
        await upstream.run(BODY, sink, principal=ME)
        assert sink.data == chunk("hi") + finish()
        await upstream.aclose()


async def test_nobody_there_is_unreachable_and_a_black_hole_is_a_timeout(client: Any) -> None:
    async with raw_upstream(stall) as server:
        gone = server.base_url
    upstream = upstream_at(gone, client)
    with pytest.raises(UpstreamUnreachable):
        await upstream.run(BODY, Collector(), principal=ME)
    await upstream.aclose()

    # A listener whose backlog is full answers no SYN: nothing connects, nothing is refused.
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            waiting.append(one)
        upstream = upstream_at(f"http://127.0.0.1:{full.getsockname()[1]}/v1", client, connect_timeout=0.1)
        with pytest.raises(ConnectTimeout):
            await upstream.run(BODY, Collector(), principal=ME)
        await upstream.aclose()
        for one in waiting:
            one.close()


# Faults -------------------------------------------------------------------------------------------------------------


async def test_a_connection_closed_before_the_headers_is_unreachable(client: Any) -> None:
    async def close(peer: Peer) -> None:
        raise Hangup

    error, _ = await failure(close, client)
    assert isinstance(error, UpstreamUnreachable)
    assert error.status == 502


UNREADABLE = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "a list of two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nabc",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: other\r\n\r\nabc",
    "another protocol": b"220 smtp.example ESMTP\r\n\r\n",
    "a chunk whose size is no number": HEAD + b"xyz\r\n",
}


@pytest.mark.parametrize("wire", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
async def test_an_answer_that_is_not_http_is_named_and_not_asked_for_again(
    client: Any, wire: bytes, kept: bool
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(wire if len(server.requests) > kept else HEAD + chunked(finish()) + END)

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client)
        for _ in range(kept):
            await upstream.run(BODY, Collector(), principal=ME)
        with pytest.raises(UpstreamUnreadable, match=r"not valid HTTP/1\.1\.$") as raised:
            await upstream.run(BODY, Collector(), principal=ME)
        assert len(server.requests) == 1 + kept
        assert server.connections == 1
        await upstream.aclose()
    error = raised.value
    assert (error.status, error.code, error.should_retry) == (502, "upstream_unreadable", False)
    assert (retryable(error), transferable(error)) == (False, True)
    assert error.__cause__ is None


async def test_half_a_head_is_no_answer(client: Any) -> None:
    async def half(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nConte")
        raise Hangup

    error, _ = await failure(half, client)
    assert isinstance(error, UpstreamUnreachable)
    assert retryable(error)


@pytest.mark.parametrize("status", [b"201 Created", b"202 Accepted", b"203 X", b"299 X"])
async def test_any_2xx_is_an_answer(client: Any, status: bytes) -> None:
    async def answer(peer: Peer) -> None:
        if peer.head.startswith(b"GET"):
            await peer.send(b"HTTP/1.1 %b\r\nContent-Length: 21\r\n\r\n" % status + b'{"data":[{"id":"m"}]}')
        else:
            await peer.send(HEAD.replace(b"200 OK", status) + chunked(finish()) + END)

    async with raw_upstream(answer) as server:
        upstream, sink = upstream_at(server.base_url, client), Collector()
        await upstream.run(BODY, sink, principal=ME)
        assert (sink.status, sink.data) == (int(status[:3]), finish())
        assert await upstream.models(principal=ME) == [{"id": "m"}]
        await upstream.aclose()


async def test_a_body_that_breaks_off_is_truncated(client: Any) -> None:
    async def half(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")) + b"ff\r\nhalf")
        raise Hangup

    error, sink = await failure(half, client)
    assert isinstance(error, UpstreamTruncated)
    assert sink.data.startswith(chunk("hi"))


@pytest.mark.parametrize(("status", "again"), [(400, False), (429, True), (503, True)])
async def test_a_refusal_whose_body_breaks_off_is_a_refusal(client: Any, status: int, again: bool) -> None:
    async def half(peer: Peer) -> None:
        head = b"HTTP/1.1 %d No\r\nRetry-After: 7\r\nContent-Length: 99\r\n\r\n" % status
        await peer.send(head + b'{"error": {"message": "Not now", "co')
        raise Hangup

    error, _ = await failure(half, client)
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.message, error.retry_after, retryable(error)) == (status, "Not now", 7, again)


async def test_a_body_without_length_may_end_with_its_connection(client: Any) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(CLOSING_HEAD + finish())
        raise Hangup

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client)
        sink = Collector()
        await upstream.run(BODY, sink, principal=ME)
        assert sink.data == finish()
        await upstream.aclose()


REFUSALS: dict[str, tuple[int, bytes, bytes, dict[str, Any]]] = {
    "OpenAI's shape": (
        429,
        b"retry-after: 7\r\nx-should-retry: false\r\n",
        b'{"error":{"message":"slow down","type":"rate_limit","param":null,"code":"slow"}}',
        {"status": 429, "type": "rate_limit", "code": "slow", "retry_after": 7.0, "should_retry": False},
    ),
    "detail": (422, b"", b'{"detail":"no"}', {"status": 422, "type": "invalid_request_error", "message": "no"}),
    "a list of details": (
        422,
        b"",
        b'{"detail":[{"loc":["x"],"msg":"field required"},{"loc":["y"]},{"msg":"too long"},5]}',
        {"status": 422, "message": "field required; too long"},
    ),
    "a list without words": (422, b"", b'{"detail":[{"loc":["x"]}]}', {"message": "The upstream reported an error."}),
    "a bare string": (400, b"", b'"bad"', {"status": 400, "message": "bad"}),
    "plain text": (503, b"", b"overloaded", {"status": 503, "type": "upstream_error", "message": "overloaded"}),
    "HTML": (502, b"", b"<html>x</html>", {"status": 502, "message": "The upstream answered with status 502."}),
    "nothing": (500, b"", b"", {"status": 500, "message": "The upstream answered with status 500."}),
    "a numeric code": (404, b"", b'{"error":{"message":"m","code":404}}', {"status": 404, "code": "404"}),
    "a string for an error": (400, b"", b'{"error":"plain"}', {"status": 400, "message": "plain"}),
    "milliseconds": (429, b"retry-after-ms: 1500\r\n", b"", {"status": 429, "retry_after": 1.5}),
}


@pytest.mark.parametrize(("status", "headers", "body", "expected"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_keeps_its_status_whatever_its_shape(
    client: Any, status: int, headers: bytes, body: bytes, expected: dict[str, Any]
) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), headers, body))

    error, _ = await failure(refuse, client)
    assert isinstance(error, UpstreamRefused)
    assert {name: getattr(error, name) for name in expected} == expected


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_our_key_is_never_the_visitors_401(client: Any, status: int) -> None:
    async def refuse(peer: Peer) -> None:
        body = b'{"error":{"message":"Incorrect API key provided: key-12345"}}'
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    error, _ = await failure(refuse, client, api_key="key-12345")
    assert isinstance(error, UpstreamCredentials)
    assert error.status == 502
    assert "key-12345" not in json.dumps(error.body())


async def test_a_key_that_is_echoed_in_an_error_is_taken_out(client: Any) -> None:
    async def refuse(peer: Peer) -> None:
        body = b'{"error":{"message":"bad header: Bearer key-12345"}}'
        await peer.send(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    error, _ = await failure(refuse, client, api_key="key-12345")
    assert error.message == "bad header: Bearer [key]"
    assert "key-12345" not in repr(error)


async def test_a_key_that_no_header_can_carry_is_not_told(client: Any) -> None:
    async def broken(principal: Principal) -> str:
        return "key-12345\n"

    upstream = upstream_at("http://127.0.0.1:9/v1", client, api_key=broken)
    with pytest.raises(UpstreamCredentials) as raised:
        await upstream.run(BODY, Collector(), principal=ME)
    assert "key-12345" not in "".join(traceback.format_exception(raised.value))
    await upstream.aclose()


async def test_a_key_that_the_client_refuses_is_not_told_with_the_cause(client: Any) -> None:
    async def hang_up(peer: Peer) -> None:
        raise Hangup

    error, _ = await failure(hang_up, client, api_key="key-12345 ")
    assert "key-12345" not in "".join(traceback.format_exception(error))


async def test_a_redirect_is_not_followed(client: Any) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")

    error, _ = await failure(redirect, client)
    assert (type(error), error.status) == (UpstreamError, 502)


# Models -------------------------------------------------------------------------------------------------------------


async def test_models_are_listed_and_remembered_for_a_while(client: Any) -> None:
    async def answer(peer: Peer) -> None:
        body = b'{"object":"list","data":[{"id":"one"},{"id":"two","x":1}]}'
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client)
        for _ in range(2):
            assert await upstream.models(principal=ME) == [{"id": "one"}, {"id": "two", "x": 1}]
        assert len(server.requests) == 1
        assert server.requests[0].head.startswith(b"GET /v1/models ")
        await upstream.aclose()


async def test_a_list_that_does_not_come_is_not_waited_for_long(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(peer: Peer) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("quart_openai_sse.upstreams.openai.PATIENCE", 0.1)
    async with raw_upstream(answer) as server, asyncio.timeout(5):
        upstream = upstream_at(server.base_url, client)
        with pytest.raises(TotalTimeout):
            await upstream.models(principal=ME)
        await upstream.aclose()


async def test_a_list_that_cannot_be_read_is_the_upstreams_fault(client: Any) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client)
        with pytest.raises(UpstreamError, match="cannot be read"):
            await upstream.models(principal=ME)
        await upstream.aclose()


# Cancellation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["own"], indirect=True)
async def test_only_what_runs_no_code_of_others_is_over_at_once(client: Any) -> None:
    async def key(principal: Principal) -> str:
        return "sk"

    def at_once(given: Any = None, **options: Any) -> bool:
        return OpenAIUpstream(Config(base_url="http://127.0.0.1:9/v1", **options), client=given).cancels_at_once

    async with httpx.AsyncClient() as given:
        assert not at_once(given)
    assert not at_once(own_transport=False)
    assert not at_once(own_transport=True, api_key=key)
    assert at_once(own_transport=True)


async def test_cancelling_closes_the_connection_in_every_window(client: Any) -> None:
    async def headers_only(peer: Peer) -> None:
        await peer.send(HEAD)
        await stall(peer)

    async def one_event(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("hi")))
        await stall(peer)

    for handler in (stall, headers_only, one_event):
        async with raw_upstream(handler) as server:
            upstream = upstream_at(server.base_url, client)
            sink = Collector()
            running = asyncio.ensure_future(upstream.run(BODY, sink, principal=ME))
            while (
                not server.requests
                or (handler is one_event and not sink.data)
                or (handler is headers_only and not sink.status)
            ):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()
            await server.closed.get()
            await upstream.aclose()


@pytest.mark.parametrize("client", ["own"], indirect=True)  # any other's pool is as large as its owner made it
async def test_cancelling_while_connecting_leaks_no_place_and_sends_nothing(client: Any) -> None:
    """httpcore keeps the place of a request that is cancelled while it connects, for ever (encode/httpcore#1093)."""

    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(finish()) + END)

    async with raw_upstream(answer) as server:
        upstream = upstream_at(server.base_url, client, max_connections=2, connect_timeout=20)
        for waits in range(60):
            running = asyncio.ensure_future(upstream.run(BODY, Collector(), principal=ME))
            for _ in range(waits % 12):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running})
        sink = Collector()
        await upstream.run(BODY, sink, principal=ME)
        assert sink.data == finish()
        await upstream.aclose()
        assert not getattr(upstream._client, "_abandoned", None)


def test_errors_are_whole_in_a_log_end() -> None:
    error = UpstreamFailed("x", status=503)
    rebuilt = End("failed", error=ErrorValue.of(error)).error.exception()
    assert (type(rebuilt), rebuilt.status, rebuilt.message) == (UpstreamFailed, 503, "x")
