"""An app's own formats, through a real server: headers, head, heartbeat, events, end, refusals, and what is shared."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from quart import Quart, request

from quart_openai_sse import QuartOpenAISSE
from quart_openai_sse.errors import InvalidLastEventID, OpenAISSEError
from quart_openai_sse.formats import BaseFormat, Reading, SSEFormat, end_data, entry_text
from quart_openai_sse.formats.text import TextFormat
from quart_openai_sse.logs.entries import Batch, End
from quart_openai_sse.protocol.sse import SSEDecoder, encode_data
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, read
from quart_openai_sse.web.language import shipped
from quart_openai_sse.web.stream import Stream
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION}


class Lines(BaseFormat):
    """A line of JSON for each thing to say, some for each entry."""

    headers = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store", "X-Lines": "yes"}
    heartbeat = b"\n"

    def head(self) -> bytes:
        about = self.reading.about
        return line({"id": about.id, "thread": about.thread, "model": about.model, "after": self.reading.after})

    def encode(self, batch: Batch) -> bytes:
        texts = [(batch.id(place), entry_text(entry)) for place, entry in enumerate(batch.entries, batch.first)]
        return b"".join(line({"text": text}) + line({"place": place}) for place, text in texts if text)

    def end(self, end: End) -> bytes:
        return line({"outcome": end.outcome}) + line(end_data(end, self.reading.translate))

    def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
        return self.reading.translate(error.user_message).encode(), "text/plain; charset=utf-8"


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def lines(body: bytes) -> list[Any]:
    return [json.loads(each) for each in body.splitlines() if each]


class Gate:
    """A step of a script that waits until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        await self.open.wait()


async def started(client: httpx.AsyncClient, **body: Any) -> str:
    """The address of a new stream."""
    response = await client.post("/v1/streams", json={**BODY, **body})
    url: str = response.json()["url"]
    return url


async def test_a_format_of_the_apps_own_is_spoken_whole(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream([chunk("one"), chunk(" two"), finish()]))
    assert ai.format("lines")(Lines) is Lines
    client = await serve(app)
    url = await started(client, thread="t")
    response = await client.get(url, params={"format": "lines"})
    stream_id = url.rpartition("/")[2]
    assert response.headers["content-type"] == "application/x-ndjson"
    assert (response.headers["cache-control"], response.headers["x-lines"]) == ("no-store", "yes")
    assert (response.headers["x-accel-buffering"], response.headers["x-stream-id"]) == ("no", stream_id)
    assert lines(response.content) == [
        {"id": stream_id, "thread": "t", "model": "scripted", "after": ""},
        *({"text": "one"}, {"place": "1"}, {"text": " two"}, {"place": "2"}),
        *({"outcome": "completed"}, {"finish_reason": "stop", "usage": None}),
    ]
    resumed = await client.get(url, params={"format": "lines"}, headers={"Last-Event-ID": "1"})
    assert lines(resumed.content)[0]["after"] == "1"
    assert lines(resumed.content)[1:] == lines(response.content)[3:]
    head = await client.head(url, params={"format": "lines"})
    assert (head.status_code, head.headers["x-lines"], head.content) == (200, "yes", b"")
    ended = await client.get(url, params={"format": "lines"}, headers={"Last-Event-ID": "end"})
    assert (ended.status_code, ended.headers["content-type"]) == (204, "application/x-ndjson")
    assert (await read((await client.get(url)).content)).text == "one two"


async def test_a_client_that_accepts_its_content_type_gets_the_stream_at_once(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    ai.format("lines")(Lines)
    client = await serve(app)
    params = {"format": "lines"}
    stream = await client.post("/v1/streams", json=BODY, params=params, headers={"Accept": "application/x-ndjson"})
    assert (stream.status_code, stream.headers["content-type"]) == (200, "application/x-ndjson")
    other = await client.post("/v1/streams", json=BODY, params=params, headers={"Accept": "text/event-stream"})
    assert (other.status_code, list(other.json())) == (201, ["id", "url"])


async def test_a_route_of_the_apps_own_speaks_it_and_refuses_in_it(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello", b"", b""))
    ai.format("lines")(Lines)
    streams = {}

    @app.post("/ask")
    async def ask() -> Any:
        streams["it"] = stream = await ai.start(await ai.body(), principal=await ai.principal())
        return await stream.response(format="lines")

    @app.get("/ask")
    async def again() -> Any:
        return await streams["it"].response(format=request.args.get("format", "lines"))

    client = await serve(app)
    body = (await client.post("/ask", json=BODY)).content
    assert lines(body)[1:3] == [{"text": "hello"}, {"place": "2"}]
    refused = await client.get("/ask", headers={"Last-Event-ID": "99", "Accept-Language": "zh"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert refused.text == shipped()["zh"][InvalidLastEventID.user_message]
    unknown = await client.get("/ask", params={"format": "xml"})
    assert unknown.json()["error"]["message"] == "format must be one of lines, openai, text."


async def test_an_error_before_the_first_byte_is_in_the_format_and_its_headers_stay(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream([b"{}"], status=429, headers={"retry-after": "7"}))
    ai.format("lines")(Lines)
    client = await serve(app)
    params, accept = {"format": "lines"}, {"Accept": "application/x-ndjson"}
    missing = await client.get(f"/v1/streams/{'0' * 32}", params=params)
    stranger = await client.get(f"/v1/streams/{'0' * 32}", params=params, headers={"Authorization": "Bearer no"})
    refused = await client.post("/v1/streams", json=BODY, params=params, headers=accept)
    invalid = await client.post("/v1/streams", json={}, params=params, headers=accept)
    assert [
        (each.status_code, each.text, each.headers["content-type"], "Accept-Language" in each.headers["vary"])
        for each in (missing, stranger, refused, invalid)
    ] == [
        (status, text, "text/plain; charset=utf-8", True)
        for status, text in [
            (404, "This answer no longer exists."),
            (401, "Please log in."),
            (429, "The AI service is busy. Please try again in a moment."),
            (400, "This request could not be understood."),
        ]
    ]
    assert stranger.headers["www-authenticate"] == "Bearer"
    assert refused.headers["retry-after"] == "7"
    # The answer to this one would have been JSON, and so is its refusal.
    assert (await client.post("/v1/streams", json={}, params=params)).json()["error"]["code"] == "invalid_request"
    assert (await client.post("/v1/chat/completions", json=BODY)).json()["error"]["code"] == "upstream_refused"


async def test_a_format_that_cannot_write_an_error_leaves_it_to_openais_shape(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.format("broken")
    class Broken(Lines):
        def refusal(self, error: OpenAISSEError) -> tuple[bytes, str]:
            raise ValueError("no words")

    client = await serve(app)
    with caplog.at_level(logging.ERROR, "quart_openai_sse"):
        missing = await client.get(f"/v1/streams/{'0' * 32}", params={"format": "broken"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "stream_not_found")
    assert "a format could not write an error" in caplog.text


async def test_a_format_can_refuse_a_position_of_its_own(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.format("numbered")
    class Numbered(Lines):
        replays = True

        def __init__(self, reading: Reading) -> None:
            super().__init__(reading)
            if reading.after and not reading.after.startswith("n"):
                raise InvalidLastEventID("A position begins with n.")

    client = await serve(app)
    url = await started(client)
    refused = await client.get(url, params={"format": "numbered", "last_event_id": "5"})
    assert (refused.status_code, refused.text[:20]) == (400, "This answer can't be")
    replayed = await client.get(url, params={"format": "numbered", "last_event_id": "n5"})
    assert [each for each in lines(replayed.content) if "after" in each or "text" in each][1:] == [{"text": "hello"}]
    assert lines(replayed.content)[0]["after"] == "n5"
    assert not app.extensions["quart_openai_sse"][ai.name].engines.current().readers


@pytest.mark.parametrize("way", ["a new stream", "a running one"])
async def test_the_head_comes_with_the_200_before_any_entry(create_app: CreateApp, serve: Serve, way: str) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([gate, chunk("hello"), finish()]), commit_after=0.01)
    ai.format("lines")(Lines)
    client = await serve(app)
    params = {"format": "lines"}
    if way == "a new stream":
        asking = client.stream(
            "POST", "/v1/streams", params=params, json=BODY, headers={"Accept": Lines.headers["Content-Type"]}
        )
    else:
        asking = client.stream("GET", await started(client), params=params)
    async with asking as response:
        body = response.aiter_raw()
        (first,) = lines(await anext(body))
        assert first["id"] == response.headers["x-stream-id"]
        gate.open.set()
        assert {"text": "hello"} in lines(b"".join([data async for data in body]))


async def test_silence_is_broken_by_the_formats_own_heartbeat(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("hello"), gate, finish()]), keepalive=0.02)
    ai.format("lines")(Lines)
    client = await serve(app)
    async with client.stream("GET", await started(client), params={"format": "lines"}) as response:
        received = b""
        async for data in response.aiter_raw():
            received += data
            if received.endswith(b"\n\n"):
                gate.open.set()
    assert b":" not in received.replace(b'":', b"")
    assert lines(received)[-2] == {"outcome": "completed"}


async def test_a_format_without_heartbeat_is_silent(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("hello"), gate, finish()]), keepalive=0.02)

    @ai.format("quiet")
    class Quiet(Lines):
        heartbeat = b""

    client = await serve(app)
    url = await started(client)
    async with client.stream("GET", url, params={"format": "quiet"}) as response:
        async with client.stream("GET", url) as other:
            async for data in other.aiter_raw():
                if b":\n" in data.splitlines(keepends=True):  # a reader of the same stream has had a heartbeat
                    gate.open.set()
        body = b"".join([data async for data in response.aiter_raw()])
    assert b"\n\n" not in body
    assert lines(body)[-2] == {"outcome": "completed"}


# What is shared -----------------------------------------------------------------------------------------------------


async def two_readers(
    app: Quart, ai: QuartOpenAISSE, client: httpx.AsyncClient, gates: list[Gate], formats: tuple[str, str]
) -> list[bytes]:
    """What two readers of one stream get; each gate is opened when both wait for the next batch."""
    url = await started(client)
    reading = [asyncio.ensure_future(client.get(url, params={"format": name})) for name in formats]
    relay = app.extensions["quart_openai_sse"][ai.name].engines.current()
    for place, gate in enumerate(gates):
        while sum(waits_at(place, reader) for reader in relay.readers._open) < 2:
            await asyncio.sleep(0)
        gate.open.set()
    return [(await each).content for each in reading]


def waits_at(place: int, reader: Any) -> bool:
    """Whether a reader that has had *place* entries waits for the next batch."""
    return reader.place == place and reader._next is not None and not reader._next.done()


def counting(shared: Any) -> tuple[type[SSEFormat], list[int]]:
    """A format whose `sharing` is *shared*, and the places of the batches that it has encoded."""
    encoded: list[int] = []

    class Counting(SSEFormat):
        sharing = shared

        def encode(self, batch: Batch) -> bytes:
            encoded.append(batch.first)
            return b"".join(encode_data(entry.data) for entry in batch.entries)

        def end(self, end: End) -> bytes:
            return encode_data(end.outcome.encode())

    return Counting, encoded


@pytest.mark.parametrize(("shared", "times"), [("yes", 1), (None, 2)], ids=["equal values", "None"])
async def test_a_batch_for_two_readers_is_encoded_once_if_their_formats_share(
    create_app: CreateApp, serve: Serve, shared: Any, times: int
) -> None:
    gates = [Gate() for _ in range(3)]
    script = [gates[0], chunk("one"), gates[1], chunk(" two"), gates[2], chunk(" three"), finish()]
    app, ai = create_app(ScriptedUpstream(script))
    counted, encoded = counting(shared)
    ai.format("counting")(counted)
    one, other = await two_readers(app, ai, await serve(app), gates, ("counting", "counting"))
    assert one == other
    assert [event.data for event in SSEDecoder().feed(one)][-1] == "completed"
    for place in (1, 2, 3):
        assert encoded.count(place) == times


async def test_readers_in_other_formats_share_nothing_also_if_one_derives_from_the_other(
    create_app: CreateApp, serve: Serve
) -> None:
    gates = [Gate() for _ in range(2)]
    app, ai = create_app(ScriptedUpstream([gates[0], chunk("one"), gates[1], chunk(" two"), finish()]))

    @ai.format("loud")
    class Loud(TextFormat):
        def encode(self, batch: Batch) -> bytes:
            return super().encode(batch).replace(b'"text"', b'"loud"')

    text, loud = await two_readers(app, ai, await serve(app), gates, ("text", "loud"))
    assert [event.data[:14] for event in SSEDecoder().feed(text)][:2] == ['{"text":"one",', '{"text":" two"']
    assert [event.data[:14] for event in SSEDecoder().feed(loud)][:2] == ['{"loud":"one",', '{"loud":" two"']


# What goes wrong in a format ----------------------------------------------------------------------------------------


async def test_an_exception_while_encoding_ends_the_response_as_failed_in_the_format(
    create_app: CreateApp, serve: Serve
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.format("broken")
    class Broken(Lines):
        def encode(self, batch: Batch) -> bytes:
            raise ValueError("no words")

    client = await serve(app)
    body = lines((await client.get(await started(client), params={"format": "broken"})).content)
    assert [body[1], body[2]["error"]["code"]] == [{"outcome": "failed"}, "internal_error"]


async def test_a_response_whose_end_cannot_be_written_is_cut_off(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))

    @ai.format("broken")
    class Broken(Lines):
        def end(self, end: End) -> bytes:
            raise ValueError("no words")

    client = await serve(app)
    url = await started(client)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(url, params={"format": "broken"})
    assert not app.extensions["quart_openai_sse"][ai.name].engines.current().readers


async def test_a_stream_whose_end_is_lost_fails_in_the_format(create_app: CreateApp, serve: Serve) -> None:
    gate = Gate()
    app, ai = create_app(ScriptedUpstream([chunk("hello"), gate, finish()]))
    ai.format("lines")(Lines)
    client = await serve(app)
    async with client.stream("GET", await started(client), params={"format": "lines"}) as response:
        body = response.aiter_raw()
        received = await anext(body)
        while b"hello" not in received:
            received += await anext(body)
        for reader in list(app.extensions["quart_openai_sse"][ai.name].engines.current().readers._open):
            await reader.aclose()
        received += b"".join([data async for data in body])
    outcome, error = lines(received)[-2:]
    assert (outcome, error["error"]["code"]) == ({"outcome": "failed"}, "log_unavailable")
    gate.open.set()


# Whose format it is -------------------------------------------------------------------------------------------------


async def test_a_format_belongs_to_its_instance_in_all_of_its_apps(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), name="one", config_prefix="ONE_")
    other = QuartOpenAISSE(
        app,
        auth=ai._auth,
        name="other",
        config_prefix="OTHER_",
        base_url="http://127.0.0.1:9/v1",
        url_prefix="/other",
        upstream=lambda _: ScriptedUpstream("hi"),
    )
    second_app = Quart("second")
    ai.init_app(second_app)
    ai.format("lines")(Lines)
    client, second = await serve(app), await serve(second_app)
    for each in (client, second):
        assert (await each.get(await started(each), params={"format": "lines"})).status_code == 200
    url = (await client.post("/other/streams", json=BODY)).json()["url"]
    refused = await client.get(url, params={"format": "lines"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "format must be one of openai, text.")
    other.format("lines")(Lines)
    assert (await client.get(url, params={"format": "lines"})).status_code == 200


# An answer that was not streamed --------------------------------------------------------------------------------------


async def test_an_answer_that_was_not_streamed_can_be_read_as_a_stream(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello world"))

    @app.get("/items/<stream_id>")
    async def items(stream_id: str) -> Any:
        relay = app.extensions["quart_openai_sse"][ai.name].engines.get()
        stream = Stream(relay, relay.handle(stream_id, await ai.principal()), ai._formats)
        async with stream.events() as events:
            return [[item.name, item.text, "delta" in str(item.data)] async for item in events]

    client = await serve(app)
    answer = await client.post("/v1/chat/completions", json=BODY, headers={**ANN, "Idempotency-Key": "k"})
    stream_id = answer.headers["x-stream-id"]
    url = f"/v1/streams/{stream_id}"
    seen = await read((await client.get(url, params={"format": "openai"})).content)
    assert (seen.text, seen.outcome, seen.finish_reason, seen.ids) == ("hello world", "completed", "stop", ["1", "end"])
    assert seen.chunks[0]["object"] == "chat.completion.chunk"
    assert (await read((await client.get(url)).content)).text == "hello world"
    assert (await client.get(f"/items/{stream_id}")).json()[0] == ["chunk", "hello world", True]
    again = await client.post("/v1/chat/completions", json=BODY, headers={**ANN, "Idempotency-Key": "k"})
    assert again.content == answer.content
