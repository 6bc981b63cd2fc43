"""What callers are charged, through an app: whole answers, those that are left, stopped or cut, and failures."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from quart_openai_sse import StreamEnd
from quart_openai_sse.errors import FirstOutputTimeout, TokensSpent, UpstreamRefused, UpstreamTruncated
from quart_openai_sse.producers.items import finish as finish_item
from quart_openai_sse.protocol import json
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, error, finish, read, refused
from tests.conftest import BOB, CreateApp, Serve
from tests.raw import Peer, raw_upstream


def asks(characters: int, **members: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "x" * characters}], "stream": True, **members}


def usage(total: int) -> dict[str, int]:
    return {"prompt_tokens": total - 1, "completion_tokens": 1, "total_tokens": total}


def usage_so_far(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 900, "completion_tokens": completion, "total_tokens": 900 + completion}


def told(completion: int) -> bytes:
    """A chunk with a word that reports the usage so far, as some servers send it in every chunk."""
    choices = [{"index": 0, "delta": {"content": "w "}, "finish_reason": None}]
    return b"data: " + json.encode({"choices": choices, "usage": usage_so_far(completion)}) + b"\n\n"


class Site:
    """An app on a socket, with the ends of its streams."""

    def __init__(self, client: httpx.AsyncClient, ends: asyncio.Queue[StreamEnd]) -> None:
        self.client = client
        self._ends = ends

    async def ask(self, characters: int = 4, *, headers: Any = None, **members: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=asks(characters, **members), headers=headers)

    async def charged(self) -> int | None:
        """The tokens that the next stream to end was charged."""
        async with asyncio.timeout(10):
            return (await self._ends.get()).record.tokens_charged

    async def end(self) -> StreamEnd:
        async with asyncio.timeout(10):
            return await self._ends.get()

    async def leave(self, characters: int, *, after: str) -> None:
        """Asks, and disconnects within the answer."""
        async with self.client.stream("POST", "/v1/chat/completions", json=asks(characters)) as response:
            async for line in response.aiter_lines():
                if after in line:
                    return


@pytest.fixture
def open_site(create_app: CreateApp, serve: Serve) -> Any:
    async def open_site(upstream: Any = None, *, register: Any = None, **options: Any) -> Site:
        app, ai = create_app(upstream, **{"tokens_per_principal": 1000, **options})
        ends: asyncio.Queue[StreamEnd] = asyncio.Queue()
        if register is not None:
            register(ai)
        ai.on_end(ends.put_nowait)
        return Site(await serve(app), ends)

    return open_site


def is_spent(response: httpx.Response) -> bool:
    return response.status_code == 429 and response.json()["error"]["code"] == "tokens_spent"


# Whole answers ----------------------------------------------------------------------------------------------------


async def test_a_prompt_that_is_larger_than_the_budget_is_never_sent(open_site: Any) -> None:
    upstream = ScriptedUpstream("Hello.")
    site = await open_site(upstream, tokens_per_principal=50)
    for streaming in [True, False] * 5:
        response = await site.ask(4 * 200_000, stream=streaming)
        assert is_spent(response)
        assert "Retry-After" not in response.headers
    assert upstream.requests == []
    assert (await site.ask()).status_code == 200


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("count", [15, 60])
async def test_requests_at_once_spend_no_more_than_the_budget_and_one_request(
    open_site: Any, streaming: bool, count: int
) -> None:
    gate = Gate()
    upstream = ScriptedUpstream([gate, chunk("Hi"), finish(usage=usage(990))])
    site = await open_site(upstream, max_streams_per_principal=1000)
    asking = [asyncio.ensure_future(site.ask(4 * 900, stream=streaming, max_tokens=90)) for _ in range(count)]
    refusals = asyncio.as_completed(asking, timeout=30)
    for _ in range(count - 1):  # the others are refused while the first one waits
        await next(refusals)
    gate.open()
    answers = [await each for each in asking]
    assert [each.status_code for each in answers].count(200) == 1
    assert all(is_spent(each) and each.headers["Retry-After"] == "5" for each in answers if each.status_code != 200)
    assert await site.charged() == 990
    assert (await site.ask(headers=BOB)).status_code == 200


@pytest.mark.parametrize("streaming", [True, False])
async def test_usage_corrects_the_estimate_both_ways(open_site: Any, streaming: bool) -> None:
    few, many = [chunk("Hi"), finish(usage=usage(7))], [chunk("Hi"), finish(usage=usage(1500))]
    site = await open_site(ScriptedUpstream(few, few, many))
    for _ in range(2):
        assert (await site.ask(4 * 900, stream=streaming)).status_code == 200
        assert await site.charged() == 7
    assert (await site.ask(stream=streaming)).status_code == 200
    assert await site.charged() == 1500
    assert is_spent(await site.ask())


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("reported", "tokens"),
    [
        ({"completion_tokens": 3}, 100 + 3),
        ({"output_tokens": 3}, 100 + 3),
        ({"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 3}, 3),
        ({"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 1}, 950),
        ({"prompt_tokens": 90, "completion_tokens": 5, "total_tokens": 120}, 120),
    ],
)
async def test_a_usage_that_lacks_a_part_makes_nothing_free(
    open_site: Any, reported: dict[str, int], tokens: int, streaming: bool
) -> None:
    site = await open_site(ScriptedUpstream([chunk("Hi"), finish(usage=reported)]))
    assert (await site.ask(400, stream=streaming)).status_code == 200
    assert await site.charged() == tokens


async def test_a_whole_answer_without_usage_is_charged_by_its_text(open_site: Any) -> None:
    site = await open_site(ScriptedUpstream([chunk("x" * 400), finish()]))
    assert (await site.ask(400, stream=False)).status_code == 200
    assert await site.charged() == 200


async def test_pictures_and_files_have_the_price_that_is_configured(open_site: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    site = await open_site(ScriptedUpstream("Hello."), attachment_tokens=300)
    for count, status in [(4, 429), (2, 200)]:
        body = {**asks(0), "messages": [{"role": "user", "content": [picture] * count}]}
        assert (await site.client.post("/v1/chat/completions", json=body)).status_code == status
    assert await site.charged() == 603  # with a role, a word and a finish_reason


# Answers that are left, stopped or cut ------------------------------------------------------------------------------


async def test_disconnecting_before_the_usage_costs_the_prompt(open_site: Any) -> None:
    upstream = ScriptedUpstream([chunk("Hi"), asyncio.Event().wait])
    site = await open_site(upstream)
    for _ in range(3):
        await site.leave(4 * 300, after="Hi")
        assert await site.charged() == 301
    assert is_spent(await site.ask(4 * 300))
    assert len(upstream.requests) == 3


async def test_disconnecting_before_an_answer_in_one_piece_costs_the_prompt(open_site: Any) -> None:
    gate = Gate()
    site = await open_site(ScriptedUpstream([gate]))
    asking = asyncio.ensure_future(site.ask(4 * 600, stream=False))
    await gate.reached()
    asking.cancel()
    assert await site.charged() == 600
    assert is_spent(await site.ask(4 * 600))


async def test_stopping_a_stream_costs_the_prompt_and_what_came(open_site: Any) -> None:
    gate = Gate()
    site = await open_site(ScriptedUpstream([chunk("one"), chunk("two"), gate]))
    started = await site.client.post("/v1/streams", json=asks(4 * 600))
    await gate.reached()
    await site.client.delete(started.json()["url"])
    assert await site.charged() == 602


async def test_usage_that_came_before_a_cut_counts(open_site: Any) -> None:
    site = await open_site(ScriptedUpstream([told(50), UpstreamTruncated("cut")]))
    await site.ask()
    assert await site.charged() == 950


# Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503, 529])
async def test_an_upstream_that_refuses_costs_nothing(open_site: Any, status: int, streaming: bool) -> None:
    async def refuse(peer: Peer) -> None:
        body = json.encode({"error": {"message": "no"}})
        await peer.send(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    async with raw_upstream(refuse) as upstream:
        site = await open_site(base_url=upstream.base_url, retries=1, retry_delay=0)
        for _ in range(3):
            assert (await site.ask(4 * 900, stream=streaming)).status_code >= 400
            assert await site.charged() == 0


async def test_an_upstream_that_is_not_there_costs_nothing(open_site: Any) -> None:
    async with raw_upstream(lambda peer: peer.gone()) as upstream:
        address = upstream.base_url
    site = await open_site(base_url=address)
    for _ in range(3):
        assert (await site.ask(4 * 900)).status_code == 502
        assert await site.charged() == 0


async def test_an_upstream_that_has_begun_to_answer_costs_the_prompt(open_site: Any) -> None:
    steps = [UpstreamTruncated("cut"), FirstOutputTimeout("late")]
    site = await open_site(ScriptedUpstream(*([step] for step in steps), [error("no", code=503)], [refused(503)]))
    charges = []
    for _ in range(4):
        await site.ask(4 * 200)
        charges.append(await site.charged())
    assert charges == [200, 200, 0, 0]


async def test_an_attempt_that_was_cut_is_charged_though_the_next_one_is_refused(open_site: Any) -> None:
    upstream = ScriptedUpstream([UpstreamTruncated("cut")], [refused(503)])
    site = await open_site(upstream, retries=1, retry_delay=0)
    await site.ask(4 * 200)
    assert (await site.charged(), len(upstream.requests)) == (200, 2)


# Models of the app, and transforms ------------------------------------------------------------------------------------


def agent(ai: Any) -> None:
    """A model that asks three times, and passes on the last answer."""

    @ai.model("agent")
    async def run(chat: Any) -> Any:
        await chat.call("scripted", chat.messages)
        await chat.call("scripted", chat.messages)
        async for each in chat.call("scripted", chat.messages):
            yield each


STEP = [chunk("step"), finish(usage=usage(600))]


@pytest.mark.parametrize("how", ["left", "stopped", "cut"])
async def test_an_agent_is_charged_for_its_finished_calls_however_it_ends(open_site: Any, how: str) -> None:
    gate = Gate()
    last = [chunk("final"), gate, UpstreamTruncated("cut")]
    site = await open_site(ScriptedUpstream(STEP, STEP, last), register=agent, tokens_per_principal=1400)
    body = asks(4 * 100, model="agent")
    if how == "left":
        async with site.client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_raw())
    else:
        started = await site.client.post("/v1/streams", json=body)
        await gate.reached()
        if how == "stopped":
            await site.client.delete(started.json()["url"])
        gate.open()
    end = await site.end()
    assert (end.usage or {})["total_tokens"] == 1200
    assert end.record.tokens_charged == 1200 + 101  # the third: its prompt, and one chunk
    assert is_spent(await site.ask(4 * 100))


async def test_a_call_after_the_budget_is_spent_is_not_sent(open_site: Any) -> None:
    caught: list[TokensSpent] = []

    def register(ai: Any) -> None:
        @ai.model("agent")
        async def run(chat: Any) -> Any:
            answer = await chat.call("scripted", chat.messages)
            for _ in range(3):
                try:
                    await chat.call("scripted", [*chat.messages, answer])
                except TokensSpent as spent:
                    caught.append(spent)
            yield "That is all I could find."

    upstream = ScriptedUpstream([chunk("step"), finish(usage=usage(1100))])
    site = await open_site(upstream, register=register)
    stream = await read((await site.ask(model="agent")).content)
    # The app decides how to end it: its own words cost nothing.
    assert (stream.text, len(upstream.requests), len(caught)) == ("That is all I could find.", 1, 3)
    assert await site.charged() == 1100
    assert is_spent(await site.ask(model="agent"))


async def test_an_agent_that_spends_the_budget_fails(open_site: Any) -> None:
    upstream = ScriptedUpstream(STEP)
    site = await open_site(upstream, register=agent)
    response = await site.ask(model="agent")
    assert is_spent(response)
    assert (await site.charged(), len(upstream.requests)) == (1200, 2)


async def test_calls_at_the_same_time_are_ended_where_the_budget_ends(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("agent")
        async def run(chat: Any) -> Any:
            calls = [chat.call("scripted", chat.messages) for _ in range(5)]
            yield str(len(await asyncio.gather(*calls)))

    script = [*[chunk("word ")] * 20, asyncio.Event().wait]
    upstream = ScriptedUpstream(script)
    site = await open_site(upstream, register=register, tokens_per_principal=60)
    assert is_spent(await site.ask(model="agent"))
    assert 60 < (await site.charged() or 0) <= 60 + 5
    assert upstream.running == 0


async def test_of_calls_at_the_same_time_only_those_are_sent_whose_prompts_fit(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("agent")
        async def run(chat: Any) -> Any:
            calls = [chat.call("scripted", chat.messages) for _ in range(5)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            yield " ".join(type(each).__name__ for each in results)

    upstream = ScriptedUpstream([chunk("step"), finish(usage=usage(310))])
    site = await open_site(upstream, register=register)
    stream = await read((await site.ask(4 * 300, model="agent")).content)
    assert stream.text.split() == ["CallMessage"] * 3 + ["TokensSpent"] * 2
    assert (await site.charged(), len(upstream.requests)) == (930, 3)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "with a transform"])
async def test_a_transform_lets_no_more_through_than_the_budget_allows(open_site: Any, wrapped: bool) -> None:
    def register(ai: Any) -> None:
        @ai.transform
        async def same(items: Any, chat: Any) -> Any:
            async for item in items:
                yield item

    upstream = ScriptedUpstream([*[told(20 * number) for number in range(40)], asyncio.Event().wait])
    site = await open_site(upstream, register=register if wrapped else None)
    stream = await read((await site.ask()).content)
    assert stream.error["code"] == "tokens_spent"
    assert len(stream.text.split()) in (6, 7)
    assert await site.charged() == 1020


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "with a transform"])
async def test_a_finished_answer_is_not_taken_away(open_site: Any, wrapped: bool) -> None:
    def register(ai: Any) -> None:
        @ai.transform
        async def same(items: Any, chat: Any) -> Any:
            async for item in items:
                yield item

    upstream = ScriptedUpstream([chunk("one"), chunk(" two"), finish(usage=usage(1100))])
    site = await open_site(upstream, register=register if wrapped else None)
    stream = await read((await site.ask()).content)
    assert (stream.text, stream.error, await site.charged()) == ("one two", None, 1100)
    assert is_spent(await site.ask())


class Chunk:
    """A chunk of another SDK."""

    def __init__(self, text: str, *, reason: str | None = None, usage: dict[str, int] | None = None) -> None:
        delta = {"content": text} if text else {}
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        self._chunk = {"id": "c1", "choices": [choice], "usage": usage}

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return self._chunk


async def test_usage_in_another_sdks_chunks_ends_a_stream_where_the_budget_ends(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            for number in range(100):
                yield Chunk("w ", usage=usage_so_far(20 * number))

    site = await open_site(register=register)
    stream = await read((await site.ask(model="own")).content)
    assert (stream.error["code"], len(stream.text.split())) == ("tokens_spent", 7)
    assert await site.charged() == 1020


@pytest.mark.parametrize(
    ("items", "tokens"),
    [
        (["Hello", " there"], 100 + 4),  # with the role and the finish_reason
        (["Hello", finish_item("stop", usage(450))], 450),
        ([Chunk("Hello"), Chunk("", reason="stop", usage=usage(450))], 450),
        ([Chunk("Hello"), Chunk("", reason="stop")], 100 + 3),
    ],
    ids=["text", "a reported usage", "a usage of another SDK", "chunks of another SDK"],
)
async def test_a_model_that_makes_no_calls_is_charged_by_its_usage_or_the_estimate(
    open_site: Any, items: list[Any], tokens: int
) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            for item in items:
                yield item

    site = await open_site(register=register)
    assert (await site.ask(400, model="own")).status_code == 200
    assert await site.charged() == tokens


def collects(ai: Any) -> None:
    """A transform that keeps everything until the model has ended."""

    @ai.transform
    async def collect(items: Any, chat: Any) -> Any:
        yield str(len([item async for item in items]))


@pytest.mark.parametrize("asks_first", [False, True], ids=["without calls", "after a call"])
async def test_no_transform_hides_what_another_client_spends(open_site: Any, asks_first: bool) -> None:
    yielded: list[int] = []

    def register(ai: Any) -> None:
        collects(ai)

        @ai.model("own")
        async def own(chat: Any) -> Any:
            if asks_first:
                await chat.call("scripted", chat.messages)
            for number in range(2000):
                yielded.append(number)
                yield Chunk("w ")
                await asyncio.sleep(0)

    site = await open_site(ScriptedUpstream(STEP), register=register)
    assert is_spent(await site.ask(400, model="own"))
    assert await site.charged() == 1001
    assert len(yielded) == (401 if asks_first else 902)


@pytest.mark.parametrize("items", [[Chunk("w ")] * 30, ["w "] * 30], ids=["of another client", "of its own"])
async def test_a_model_that_fails_behind_a_transform_is_charged_what_it_has_made(
    open_site: Any, items: list[Any]
) -> None:
    def register(ai: Any) -> None:
        collects(ai)

        @ai.model("own")
        async def own(chat: Any) -> Any:
            for item in items:
                yield item
            raise RuntimeError("the library's server is away")

    site = await open_site(register=register)
    assert (await site.ask(400, model="own")).status_code == 500
    assert await site.charged() == 130


async def test_disconnecting_from_a_model_that_makes_no_calls_costs_the_prompt(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            yield Chunk("Hi")
            await asyncio.Event().wait()

    site = await open_site(register=register)
    async with site.client.stream("POST", "/v1/chat/completions", json=asks(400, model="own")) as response:
        await anext(response.aiter_raw())
    assert await site.charged() == 100 + 2


async def test_what_a_model_has_reported_itself_counts_if_it_is_left(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            yield "Hello"
            yield {"choices": [], "usage": usage(450)}
            await asyncio.Event().wait()

    site = await open_site(register=register)
    async with site.client.stream("POST", "/v1/chat/completions", json=asks(4, model="own")) as response:
        await anext(response.aiter_raw())
    end = await site.end()
    assert (end.outcome, end.usage, end.record.tokens_charged) == ("stopped", usage(450), 449 + 2)


async def test_another_sdks_stream_beside_calls_is_added_to_them(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            await chat.call("scripted", chat.messages)
            yield Chunk("Hi", reason="stop", usage=usage(100))

    site = await open_site(ScriptedUpstream(STEP), register=register)
    assert (await site.ask(model="own")).status_code == 200
    assert await site.charged() == 700


async def test_a_model_that_fails_before_any_output_costs_nothing(open_site: Any) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            if chat.messages:
                raise RuntimeError("the library's server is away")
            yield ""

    site = await open_site(register=register)
    assert (await site.ask(4 * 900, model="own")).status_code == 500
    assert await site.charged() == 0


@pytest.mark.parametrize("status", [400, 503])
async def test_a_call_that_was_refused_does_not_count_against_the_one_that_replaces_it(
    open_site: Any, status: int
) -> None:
    def register(ai: Any) -> None:
        @ai.model("own")
        async def own(chat: Any) -> Any:
            try:
                await chat.call("scripted", chat.messages)
            except UpstreamRefused:
                yield (await chat.call("scripted", chat.messages))["content"]

    site = await open_site(ScriptedUpstream([refused(status)], STEP), register=register)
    stream = await read((await site.ask(4 * 900, model="own")).content)
    assert (stream.text, await site.charged()) == ("step", 600)


async def test_without_a_limit_nothing_is_charged(open_site: Any) -> None:
    site = await open_site(ScriptedUpstream("Hello."), tokens_per_principal=None)
    assert (await site.ask(4 * 200_000)).status_code == 200
    assert await site.charged() is None
