"""Promise 2: nothing cut ever looks complete. Each fault of an upstream or an app's model, what the client saw, and
what the log line said; `python -m tests.test_faults` prints the table."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import chunk, finish, read, serve_app
from tests.conftest import ANN, QUESTION, TOKENS
from tests.raw import CLOSING_HEAD, END, HEAD, Hangup, Peer, chunked, raw_upstream

HALF = HEAD + chunked(chunk("", role="assistant")) + chunked(chunk("half"))
PREAMBLE = HEAD + chunked(chunk("", role="assistant"))


@dataclass(frozen=True)
class Fault:
    """What an upstream does instead of answering properly; then it hangs up, unless it *stalls*."""

    sends: bytes
    code: str
    status: int = 200
    """What a client gets: 200, and the failure as an event; or the failure's own status."""
    stalls: bool = False


FAULTS = {
    "closes before the headers": Fault(b"", "upstream_unreachable", 502),
    "closes within the headers": Fault(b"HTTP/1.1 200 OK\r\nConte", "upstream_unreachable", 502),
    "speaks something else": Fault(b"SSH-2.0-OpenSSH\r\n\r\n", "upstream_unreachable", 502),
    "stalls before the headers": Fault(b"", "first_output_timeout", 504, stalls=True),
    "stalls after the role": Fault(PREAMBLE, "first_output_timeout", 504, stalls=True),
    "closes after the role": Fault(PREAMBLE, "upstream_truncated", 502),
    "ends after the role": Fault(PREAMBLE + END, "upstream_truncated", 502),
    "an empty stream": Fault(HEAD + END, "upstream_truncated", 502),
    "[DONE] at once": Fault(HEAD + chunked(b"data: [DONE]\n\n") + END, "upstream_truncated", 502),
    "an error instead of output": Fault(
        PREAMBLE + chunked(b'data: {"error":{"message":"busy","code":503}}\n\n') + END, "503", 503
    ),
    "a key's error in the stream": Fault(
        PREAMBLE + chunked(b'data: {"error":{"message":"bad key","code":401}}\n\n') + END, "upstream_credentials", 502
    ),
    "HTML with status 200": Fault(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html></html>",
        "upstream_garbled",
        502,
    ),
    "JSON with status 200": Fault(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"choices":[]}',
        "upstream_garbled",
        502,
    ),
    "an error with status 200": Fault(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        b'{"error":{"message":"m","code":"odd"}}',
        "odd",
        502,
    ),
    "gzip, though not accepted": Fault(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
        "upstream_garbled",
        502,
    ),
    "an event that is not JSON": Fault(HEAD + chunked(b"data: hello\n\n"), "upstream_garbled", 502),
    "an endless event": Fault(HEAD + chunked(b"data: " + b"x" * 300_000), "upstream_garbled", 502),
    "closes in the middle": Fault(HALF, "upstream_truncated"),
    "ends in the middle": Fault(HALF + END, "upstream_truncated"),
    "ends without length in the middle": Fault(CLOSING_HEAD + chunk("half"), "upstream_truncated"),
    "sends half an event": Fault(HALF + chunked(b'data: {"choices":[{"del') + END, "upstream_truncated"),
    "sends half a UTF-8 character": Fault(
        HALF + chunked(b'data: {"choices":[{"delta":{"content":"\xe2\x82"}}]}\n\n'), "upstream_garbled"
    ),
    "lies about a chunk's size": Fault(HALF + b"5\r\nmore than five\r\n", "upstream_truncated"),
    "stalls in the middle": Fault(HALF, "gap_timeout", stalls=True),
    "[DONE] in the middle": Fault(HALF + chunked(b"data: [DONE]\n\n") + END, "upstream_truncated"),
    "an error in the middle": Fault(
        HALF + chunked(b'data: {"error":{"message":"overloaded","type":"server_error","code":"busy"}}\n\n'), "busy"
    ),
    "an error, then [DONE]": Fault(
        HALF + chunked(b'data: {"error":"overloaded"}\n\ndata: [DONE]\n\n') + END, "upstream_failed"
    ),
    "garbage in the middle": Fault(HALF + chunked(b"data: \x00\xff{{{\n\n"), "upstream_garbled"),
    "only one of two choices": Fault(HALF + chunked(chunk(finish_reason="stop")) + END, "upstream_truncated"),
}

SOUND = {
    "[DONE] twice, and data after it": HALF + chunked(finish() + b"data: [DONE]\n\n" + chunk("ghost")) + END,
    "no [DONE], but a finish_reason": HALF + chunked(chunk(finish_reason="stop")) + END,
    "closes after [DONE] without the body's end": HALF + chunked(finish()),
    "a byte at a time": HEAD + b"".join(chunked(bytes([byte])) for byte in chunk("half") + finish()) + END,
    "CR line ends": HEAD + chunked((chunk("half") + finish()).replace(b"\n", b"\r")) + END,
}


@asynccontextmanager
async def app_against(
    handler: Callable[[Peer], Awaitable[None]], *, expected: str = ""
) -> AsyncIterator[tuple[str, QuartOpenAISSE]]:
    """An app whose upstream is *handler*. A deadline is short only if it is the *expected* code."""
    async with raw_upstream(handler) as server:
        app = Quart(__name__)
        options: dict[str, Any] = {"max_event": 200_000}
        if expected in ("first_output_timeout", "gap_timeout"):
            options[expected] = 0.2
        ai = QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), base_url=server.base_url, **options)
        async with serve_app(app) as address:
            yield f"http://{address}/v1", ai


def handler_of(sends: bytes, *, stalls: bool = False) -> Callable[[Peer], Awaitable[None]]:
    async def handler(peer: Peer) -> None:
        await peer.send(sends)
        if stalls:
            await peer.gone()
        raise Hangup

    return handler


def body_of(name: str) -> dict[str, Any]:
    return {"model": "m", "messages": QUESTION, "stream": True, **({"n": 2} if "two choices" in name else {})}


async def ask(base_url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(headers=ANN, timeout=30) as client:
        return await client.post(base_url + path, json=body, headers={"Accept": "text/event-stream"})


@pytest.mark.parametrize("path", ["/chat/completions", "/streams"])
@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=FAULTS)
async def test_a_broken_upstream_is_a_failure_to_everybody(
    name: str, fault: Fault, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with app_against(handler_of(fault.sends, stalls=fault.stalls), expected=fault.code) as (base_url, _):
        response = await ask(base_url, path, body_of(name))
    assert response.status_code == fault.status
    assert b"[DONE]" not in response.content
    if fault.status == 200:
        seen = await read(response.content)
        assert (seen.outcome, seen.text) == ("failed", "half")
        error = seen.error
    else:
        error = response.json()["error"]
    assert error["code"] == fault.code
    assert error["user_message"].endswith(".")
    [line] = [record for record in caplog.records if record.name == "quart_openai_sse.stream"]
    assert (line.stream_outcome, line.stream_reason) == ("failed", fault.code)


@pytest.mark.parametrize("sends", SOUND.values(), ids=SOUND)
async def test_an_odd_but_whole_stream_is_complete(sends: bytes) -> None:
    async with app_against(handler_of(sends)) as (base_url, _):
        response = await ask(base_url, "/chat/completions", body_of(""))
    seen = await read(response.content)
    assert (seen.outcome, seen.text) == ("completed", "half")
    assert response.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("name", "sdk_error"),
    {
        "closes before the headers": openai.InternalServerError,
        "stalls after the role": openai.InternalServerError,
        "closes in the middle": openai.APIError,
        "stalls in the middle": openai.APIError,
        "ends in the middle": openai.APIError,
    }.items(),
)
async def test_the_sdk_raises_for_each(name: str, sdk_error: type[Exception]) -> None:
    fault = FAULTS[name]
    async with (
        app_against(handler_of(fault.sends, stalls=fault.stalls), expected=fault.code) as (base_url, _),
        openai.AsyncOpenAI(base_url=base_url, api_key="token-ann", max_retries=0) as client,
    ):
        with pytest.raises(sdk_error):
            async for _ in await client.chat.completions.create(**body_of(name)):
                pass


async def main() -> None:
    """Prints the table."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage().partition(" ")[2].partition(" ")[2])

    logger = logging.getLogger("quart_openai_sse.stream")
    logger.addHandler(Keep())
    logger.propagate = False
    logging.getLogger("quart_openai_sse").setLevel(logging.CRITICAL)
    logger.setLevel(logging.INFO)
    for name, fault in FAULTS.items():
        async with app_against(handler_of(fault.sends, stalls=fault.stalls), expected=fault.code) as (base_url, _):
            response = await ask(base_url, "/chat/completions", body_of(name))
        if response.status_code == 200:
            seen = await read(response.content)
            assert seen.error is not None
            saw = f"200, {seen.text!r}, then an error event {seen.error['code']}"
        else:
            saw = f"{response.status_code} {response.json()['error']['code']}"
        sys.stdout.write(f"{name:36} client: {saw:58} log: {lines.pop()}\n")


if __name__ == "__main__":
    asyncio.run(main())
