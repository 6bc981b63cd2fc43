"""Load: streams of all kinds from plain sockets, cheap enough to be many."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.conftest import ANN, QUESTION

TAIL = 4096
"""Bytes of an answer that are kept."""


@dataclass
class Answer:
    """The end of what one request got."""

    status: int = 0
    stream_id: str = ""
    last_event_id: str = ""
    tail: bytes = b""

    @property
    def outcome(self) -> str:
        """`completed`, `stopped`, the code of the failure, or `cut`: in whatever form it was said."""
        if b'"error":{' in self.tail:
            return str(self.tail.rpartition(b'"code":"')[2].partition(b'"')[0].decode())
        whole = (b"data: [DONE]", b"event: completed", b'"object":"chat.completion"')
        if b"event: stopped" in self.tail:
            return "stopped"
        return "completed" if any(sign in self.tail for sign in whole) else "cut"


async def ask(
    address: str, model: str, *, route: str = "/v1/chat/completions", leave_after: float | None = None, **members: Any
) -> Answer:
    """Asks, and reads to the end, or leaves after so many seconds."""
    body = {"model": model, "messages": QUESTION, "stream": True, **members}
    return await _exchange(address, "POST", route, json.dumps(body).encode(), leave_after=leave_after)


async def resume(address: str, answer: Answer) -> Answer:
    """Reads a stream from where *answer* ends."""
    route = f"/v1/streams/{answer.stream_id}"
    return await _exchange(address, "GET", route, headers=f"Last-Event-ID: {answer.last_event_id}\r\n")


async def _exchange(
    address: str, method: str, route: str, body: bytes = b"", *, headers: str = "", leave_after: float | None = None
) -> Answer:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = Answer()
    try:
        async with asyncio.timeout(leave_after):
            writer.write(
                f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ANN['Authorization']}\r\n{headers}"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
                "Accept: text/event-stream\r\n\r\n".encode()
                + body
            )
            await _read(reader, answer)
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    answer.status = int(head.split(b" ", 2)[1])
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(": ")
        if name.lower() == "x-stream-id":
            answer.stream_id = value
    while data := await reader.read(1 << 16):
        answer.tail = (answer.tail + data)[-TAIL:]
        if b"\nid: " in answer.tail and (line := answer.tail.rpartition(b"\nid: ")[2]).find(b"\n") >= 0:
            answer.last_event_id = line.partition(b"\n")[0].decode().strip()
