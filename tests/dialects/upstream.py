"""The upstream: the model's name says which sample is sent, and where it is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.dialects.sample import Frame, Sample
from tests.raw import END, HEAD, Hangup, Peer, RawServer, chunked, raw_upstream


@dataclass(frozen=True)
class Serving:
    """A sample, or its first events: as many as *count*. Then the body ends, or with *breaks* the connection."""

    sample: Sample
    count: int | None = None
    breaks: bool = False

    @property
    def model(self) -> str:
        """The name by which the upstream is asked for it."""
        if self.count is None:
            return self.sample.name
        return f"{self.sample.name}@{self.count}{'!' if self.breaks else ''}"

    @property
    def frames(self) -> list[Frame]:
        """The events that are sent."""
        return list(self.sample.frames)[: self.count]

    def __str__(self) -> str:
        if self.count is None:
            return "whole"
        return f"cut after {self.count}, {'broken' if self.breaks else 'closed'}"


@asynccontextmanager
async def dialect_upstream(samples: Iterable[Sample]) -> AsyncIterator[RawServer]:
    """Serves *samples* until the block is left."""
    known = {sample.name: sample for sample in samples}

    async def answer(peer: Peer) -> None:
        body = json.loads(peer.body)
        serving = _serving(known, body["model"])
        if serving.sample.body and not body.get("stream"):
            await peer.send(_json_head(len(serving.sample.body)) + serving.sample.body)
            return
        wire = b"".join(frame.wire for frame in serving.frames)
        await peer.send(HEAD + (chunked(wire) if wire else b"") + (b"" if serving.breaks else END))
        if serving.breaks:
            raise Hangup

    async with raw_upstream(answer) as server:
        yield server


def _serving(known: Mapping[str, Sample], model: str) -> Serving:
    name, _, cut = model.partition("@")
    return Serving(known[name], int(cut.rstrip("!")) if cut else None, cut.endswith("!"))


def _json_head(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length


async def foreign_chunks(base_url: str, model: str) -> AsyncIterator[dict[str, Any]]:
    """The chunks that another client reads, such as OpenAI's SDK.

    Like that SDK it ends silently at `[DONE]` and at the end of the body, and raises if the connection breaks.
    """
    address = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        body = json.dumps({"model": model, "stream": True}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await reader.readuntil(b"\r\n\r\n")
        body, broken = await _unchunked(reader)
        for line in body.splitlines():
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                continue
            yield json.loads(data)
        if broken:
            raise ConnectionError("The connection broke.")
    finally:
        writer.close()


async def _unchunked(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """A body, and whether the connection broke within it."""
    body = b""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
    except asyncio.IncompleteReadError:
        return body, True
    return body, False
