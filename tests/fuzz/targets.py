"""The fuzz targets: functions of bytes that raise `AssertionError` if a promise about any input is broken."""

from __future__ import annotations

import asyncio
import atexit
import base64
import gzip
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import Any
from unicodedata import category

from quart import Quart

from quart_openai_sse.auth.authentication import authenticate
from quart_openai_sse.auth.jwks import _read_key
from quart_openai_sse.auth.jwt import _header, jwt_bearer
from quart_openai_sse.errors import AuthenticationRequired, InvalidLastEventID, OpenAISSEError, UpstreamError
from quart_openai_sse.formats import Reading
from quart_openai_sse.formats.openai import OpenAIFormat
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import END_ID, About, Batch, End, Entry
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.assembly import Assembly
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.protocol.requests import digest, parse_body, validate
from quart_openai_sse.protocol.sse import EventTooLarge, RawEvent, SSEDecoder, encode_data
from quart_openai_sse.protocol.trace_context import trace_id_from
from quart_openai_sse.protocol.upstream_events import UpstreamDecoder
from quart_openai_sse.protocol.upstream_sentences import LONGEST
from quart_openai_sse.testing import chunk, finish
from quart_openai_sse.upstreams.listing import read_models
from quart_openai_sse.upstreams.refusals import refusal

Target = Callable[[bytes], None]


def decoder(data: bytes) -> None:
    """Any cut of any bytes gives the same events, and an event that is encoded again is the same one."""
    how, wire = data[:8], data[8:]
    limit = how[0] + 1 if how[:1] > b"\x80" else 1 << 20
    whole = _decoded([wire], limit)
    assert _decoded(_cut(wire, how), limit) == whole
    assert _data_alone(_cut(wire, how), limit) == [event.data for event in whole[0]]
    for event in whole[0]:
        assert SSEDecoder().feed_raw(encode_data(event.data)) == [RawEvent(event.data, b"", b"")]


def upstream(data: bytes) -> None:
    """Any cut of an upstream's bytes gives the same events and errors; each error is one, and JSON can say it."""
    how, wire = data[:8], data[8:]
    limit = how[0] + 1 if how[:1] > b"\x80" else 1 << 20
    whole = _decoded_upstream([wire], limit)
    assert _decoded_upstream(_cut(wire, how), limit) == whole
    for error in whole[1]:
        with suppress(UpstreamError):
            Completion().feed(error)
            raise AssertionError("an error that no stream fails with")


def request(data: bytes) -> None:
    """Any body is a request that can be sent on unchanged, or a 4xx that JSON can say."""
    refusal, body = None, {}
    try:
        body = validate(parse_body(data, content_type="application/json"))
        assert len(digest(body)) == 64
    except OpenAISSEError as error:
        refusal = error
    if refusal is not None:
        assert 400 <= refusal.status < 500
        assert json.encode(refusal.body())
    else:
        assert json.decode(json.encode(body)) == body
        assert body["model"].isprintable()


def completion(data: bytes) -> None:
    """Any chunks add up to a message or raise an `UpstreamError`, and each becomes one event at most."""
    followed, assembly = Completion(n=1 + len(data) % 2), Assembly()
    entries = []
    with suppress(UpstreamError):
        for line in data.split(b"\n"):
            followed.feed(line)
            assembly.add(line)
            entries.append(Entry(line))
        followed.end()
        assert followed.done
    assert json.encode(assembly.message())
    reading = Reading(ids=True, include_usage=True)
    for spoken in (OpenAIFormat(reading), TextFormat(reading)):
        wire = spoken.encode(Batch(1, entries)) + spoken.end(End("completed"))
        *places, end = [event.id for event in SSEDecoder(max_event_bytes=1 << 24).feed_raw(wire)]
        assert end == END_ID.encode()
        assert [int(place) for place in places] == sorted({int(place) for place in places})


def models(data: bytes) -> None:
    """Any body is a list of models with ids that JSON can say, or an error of the upstream's."""
    with suppress(UpstreamError):
        for model in read_models(data):
            assert isinstance(model["id"], str)
            assert model["id"]
            assert json.decode(json.encode(model)) == model


def refusals(data: bytes) -> None:
    """Any body of a refusal is an error of the upstream's side that JSON can say, in one short printable line."""
    for status in (400, 401, 403, 429, 500):
        error = refusal(status, {}, data)
        assert error.side == "upstream"
        assert error.message.isprintable()
        assert len(error.message) <= LONGEST
        assert json.encode(error.body())
        assert error.retry_after is None or error.retry_after >= 0


def trace(data: bytes) -> None:
    """Any trace id of a client gives an id that is short, and safe in a header and in a log line."""
    traceparent, _, x_trace_id = data.decode("latin-1").partition("\0")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", trace_id_from(traceparent, x_trace_id))


def token(data: bytes) -> None:
    """No token is accepted that our key has not signed; no token and no issuer's key raises an unexpected error."""
    text = data.decode("latin-1").strip()
    header = _header(text)
    assert header is None or isinstance(header["alg"], str)
    assert _asked({"Authorization": f"Bearer {text}"}) is None
    try:
        key = json.decode(data)
    except ValueError:
        return
    found = _read_key(key, ("RS256", "ES256", "EdDSA"))
    assert found is None or not hasattr(found.value, "private_bytes")


def last_event_id(data: bytes) -> None:
    """A stream is replayed only from an id that its log has given out."""
    after = data.decode("latin-1")
    reading = _read_from(after)
    if after == "":
        assert reading == ["1", "2", "3", END_ID]
    elif after in ("1", "2", "3"):
        assert reading == ["1", "2", "3", END_ID][int(after) :]
    else:
        assert reading == ([] if after == END_ID else None)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (decoder, upstream, request, completion, models, refusals, trace, token, last_event_id)
}


SEEDS: dict[str, list[bytes]] = {
    "decoder": [
        b"\xff\1\2\3\4\5\6\7" + chunk("hi") + b"event: a\r\nid: 1\rretry: 5\ndata: x\n\n" + finish(),
        b"\x08\1\1\1\1\1\1\1data: a\r\n\r\ndata: b\r\n\r\n",
    ],
    "upstream": [
        b"\xff\1\2\3\4\5\6\7" + chunk("hi") + b'event: error\ndata: {"message": "m", "code": 503}\n\nerror: lost\n\n',
        b"\x08\1\1\1\1\1\1\1" + b'\xef\xbb\xbf {\n"error": {"message": "m"}\n}',
        b"\x08\1\1\1\1\1\1\1<html>\n\ndata: \n\n[",
    ],
    "request": [
        b'{"a":' * 20_000,
        b'{"model": null, "messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "top_p": 1,'
        b' "presence_penalty": -2, "frequency_penalty": 2, "max_tokens": 1, "max_completion_tokens": null, "seed": 1,'
        b' "logprobs": true, "top_logprobs": 20, "stop": "a", "tools": [{}], "tool_choice": "auto", "user": "u",'
        b' "parallel_tool_calls": false, "response_format": {}, "logit_bias": {"5": -1}, "model": "m"}',
        b'{"model": "m", "stream": true, "stream_options": {"include_usage": true}, "n": 1, "temperature": 0.5,'
        b' "stop": ["a"], "messages": [{"role": "user", "content": "\\ud83d\\ude00"}, {"role": "tool"}]}',
    ],
    "completion": [
        b"\n".join(
            (chunk("", role="assistant") + chunk("hi", tool_calls=[{"index": 0, "id": "a"}]) + finish()).split()
        ).replace(b"data:\n", b"")
    ],
    "models": [
        b'{"object": "list", "data": [{"id": "m", "created": 1}]}',
        b'[{"id": "org/m"}, {}, null]',
        b'{"data": null}',
    ],
    "refusals": [
        b'{"error": {"message": "Provider error", "code": 429, "metadata": {"raw": "{\\"error\\": \\"x\\"}"}}}',
        b'[{"error": {"code": 429, "details": [{"reason": "", "retryDelay": "37s"}], "status": "RESOURCE_EXHAUSTED"}}]',
        b"org-abc at http://10.0.0.7:8000 has $0.02 left for sk-1***2. Please try again in 7m12.5s.",
        gzip.compress(b'{"detail": [{"loc": ["x"], "msg": "no"}]}', mtime=0),
        b'event: error\ndata: {"message": "no", "code": "1301"}\n\n',
    ],
    "trace": [b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\0mine"],
    "token": [
        b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b'{"alg":"HS256"}', b'{"sub":"ann"}', b"x")),
        b'{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "1", "alg": "RS256", "use": "sig"}',
        b'{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}',
        b'{"kty": "OKP", "crv": "Ed25519", "x": "AQ"}',
    ],
    "last_event_id": [b"", b"1", b"3", b"4", b"end", b"01", b"+1"],
}
"""The inputs that a fuzzer starts with."""


def _cut(data: bytes, sizes: bytes) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[: size % 16])
        data = data[size % 16 :]
    return [*pieces, data]


def _decoded(pieces: list[bytes], limit: int) -> tuple[list[RawEvent], str, int | None, bool]:
    sse, too_large = SSEDecoder(max_event_bytes=limit), False
    events: list[RawEvent] = []
    for piece in pieces:
        try:
            events += sse.feed_raw(piece)
        except EventTooLarge as error:
            events += error.events
            too_large = True
    return events, sse.last_event_id, sse.retry, too_large


def _data_alone(pieces: list[bytes], limit: int) -> list[bytes]:
    sse = SSEDecoder(max_event_bytes=limit)
    found: list[bytes] = []
    for piece in pieces:
        try:
            found += sse.feed_data(piece)
        except EventTooLarge as error:
            found += [event.data for event in error.events]
    return found


def _decoded_upstream(pieces: list[bytes], limit: int) -> tuple[list[bytes], list[bytes], bool, bool]:
    sse, too_large = UpstreamDecoder(max_event_bytes=limit), False
    found: list[bytes] = []
    for piece in pieces:
        try:
            found += sse.feed_data(piece)
        except EventTooLarge as error:
            found += [event.data for event in error.events]
            too_large = True
    return found, sse.end(), sse.is_document and not found, too_large


_app = Quart("fuzz")
_hook = jwt_bearer(key="a secret that no fuzzer is going to guess", algorithms=["HS256"], audience=None, issuer=None)


def _asked(headers: dict[str, str]) -> object:
    """The principal of a request with *headers*, or `None`. Servers refuse headers with control characters."""
    if any(category(letter) == "Cc" for value in headers.values() for letter in value):
        return None

    async def ask() -> object:
        async with _app.test_request_context("/", headers=headers):
            try:
                return await authenticate(_hook)
            except AuthenticationRequired:
                return None

    return _run(ask())


def _read_from(after: str) -> list[str] | None:
    """The ids that are read after the id *after*, or `None` if that is refused."""

    async def read() -> list[str]:
        ids: list[str] = []
        async for batch in await (await _log()).read("a", after=after):
            ids += [batch.id(place) for place, _ in enumerate(batch.entries, batch.first)]
            ids += [END_ID] if batch.end is not None else []
        return ids

    try:
        return _run(read())
    except InvalidLastEventID:
        return None


_logs: list[MemoryLog] = []


async def _log() -> MemoryLog:
    """A log whose stream "a" has three entries and has ended."""
    if not _logs:
        log = MemoryLog(retention=1e9)
        writer = await log.create("a", about=About(id="0" * 32), digest="", retain=True)
        assert writer is not None
        writer.append([Entry(b"{}")] * 3)
        await writer.close(End("completed"))
        _logs.append(log)
    return _logs[0]


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return _runner().run(coroutine)


@cache
def _runner() -> asyncio.Runner:
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    atexit.register(runner.close)
    return runner
