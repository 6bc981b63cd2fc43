"""Attempts and fallbacks: who is asked, how often, what is left of those who failed; over real sockets, too."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quart_openai_sse import Principal, StreamEvent, StreamRecord
from quart_openai_sse.config import Config, UpstreamConfig
from quart_openai_sse.errors import (
    FirstOutputTimeout,
    ModelNotFound,
    OpenAISSEError,
    TotalTimeout,
    UpstreamCredentials,
    UpstreamGarbled,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from quart_openai_sse.flow import Flow
from quart_openai_sse.testing import ScriptedUpstream, chunk, error, finish, read, refused
from quart_openai_sse.upstreams import Attempt, listing
from quart_openai_sse.upstreams import several as several_module
from quart_openai_sse.upstreams.breaker import Breaker, BreakerState
from quart_openai_sse.upstreams.retries import Backoff
from quart_openai_sse.upstreams.several import Candidate, Upstreams
from tests.conftest import QUESTION, Clock, CreateApp, Serve
from tests.raw import END, HEAD, Hangup, Peer, chunked, raw_upstream

ME = Principal("ann")
BODY = {"model": "m", "messages": QUESTION, "stream": True}
SOON = Backoff(delay=0)
ROLE = chunk("", role="assistant")


class Notes:
    """A sink that notes what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.started = False
        self.fed = 0.0

    def begin(self, upstream: str) -> None:
        self.said.append(upstream)

    def failed(self, attempt: Attempt) -> None:
        self.said.append(attempt.error.code if attempt.wait is not None else f"{attempt.error.code}!")

    def head(self, status: int, headers: Any) -> None:
        pass

    def feed(self, data: bytes) -> Flow:
        self.started = self.started or (b'"content":"' in data and b'"content":""' not in data)
        return Flow.MORE

    async def room(self) -> None:
        pass

    def finish(self) -> None:
        self.said.append("complete")


def named(name: str, *scripts: Any) -> ScriptedUpstream:
    upstream = ScriptedUpstream(*scripts)
    upstream.name = name
    return upstream


def down() -> list[Any]:
    return [UpstreamUnreachable("down")]


async def attempts(
    *candidates: Candidate | ScriptedUpstream, backoff: Backoff = SOON, commits: Any = None, **options: Any
) -> list[Any]:
    """What one request to them tells its sink; an error that it raises stands last."""
    several = Upstreams(
        [
            each if isinstance(each, Candidate) else Candidate(upstream=each, priority=place)
            for place, each in enumerate(candidates)
        ],
        backoff=backoff,
        **options,
    )
    notes = Notes()
    try:
        await several.run(BODY, notes, principal=ME, commits=commits)
    except OpenAISSEError as raised:
        notes.said.append(raised)
    return notes.said


async def test_what_fails_before_any_output_is_sent_again() -> None:
    said = await attempts(named("one", [ROLE, UpstreamTruncated()], [refused(503)], "hello"))
    assert said == ["one", "upstream_truncated", "one", "upstream_refused", "one", "complete"]


async def test_after_real_output_nothing_is_sent_again() -> None:
    *said, raised = await attempts(named("one", [chunk("hel"), UpstreamTruncated()], "hello"), named("two", "hello"))
    assert (said, type(raised), raised.should_retry) == (["one"], UpstreamTruncated, None)


async def test_only_so_often_and_then_an_sdk_is_told_not_to() -> None:
    upstream = named("one", down())
    *said, raised = await attempts(upstream)
    assert said == ["one", "upstream_unreachable"] * 3 + ["one", "upstream_unreachable!"]
    assert (len(upstream.requests), raised.headers()) == (4, {"x-should-retry": "false"})


async def test_without_retries_the_sdk_may_try() -> None:
    *said, raised = await attempts(named("one", down()), backoff=Backoff(retries=0))
    assert (said, raised.headers()) == (["one", "upstream_unreachable!"], {})


async def test_a_request_that_is_at_fault_is_not_sent_again_nor_elsewhere() -> None:
    *said, raised = await attempts(named("one", [refused(400)]), named("two", "hello"))
    assert (said, raised.status) == (["one"], 400)


async def test_who_asks_for_a_long_wait_is_not_waited_for_and_the_caller_is_told() -> None:
    *said, raised = await attempts(named("one", [refused(429, retry_after=60)]))
    assert said == ["one", "upstream_refused!"]
    assert raised.headers() == {"Retry-After": "60"}  # our attempts are not spent


@pytest.mark.parametrize("status", [505, 507, 520, 521, 522, 523, 524, 529, 530])
async def test_every_5xx_is_sent_again_and_elsewhere_and_counts_against_its_upstream(status: int) -> None:
    assert await attempts(named("one", [refused(status)], "hello")) == ["one", "upstream_refused", "one", "complete"]
    breaker = Breaker(failures=1, reset=3600)
    said = await attempts(Candidate(upstream=named("one", [refused(status)]), breaker=breaker), named("two", "hello"))
    assert (said, breaker.state) == (["one", "upstream_refused", "two", "complete"], BreakerState.OPEN)


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (refused(404, code="model_not_found"), BreakerState.CLOSED),
        (refused(402), BreakerState.OPEN),
        (refused(429, code="insufficient_quota"), BreakerState.OPEN),
        (refused(403), BreakerState.OPEN),
    ],
    ids=["404", "402", "429 quota", "403 key"],
)
async def test_what_only_one_upstream_lacks_goes_to_another_one_at_once_and_is_not_waited_for(
    failure: OpenAISSEError, state: BreakerState
) -> None:
    breaker = Breaker(failures=1, reset=3600)
    *said, raised = await attempts(Candidate(upstream=named("one", [failure]), breaker=breaker))
    assert (said, raised, breaker.state) == (["one", f"{failure.code}!"], failure, state)
    said = await attempts(named("one", [failure]), named("two", "hello"), backoff=Backoff(delay=1000))
    assert said == ["one", failure.code, "two", "complete"]


async def test_a_refusal_of_the_content_goes_nowhere_else_and_does_not_count_against_its_upstream() -> None:
    flagged = refused(403, "Input flagged by moderation")
    breaker = Breaker(failures=1, reset=3600)
    *said, raised = await attempts(Candidate(upstream=named("one", [flagged]), breaker=breaker), named("two", "hello"))
    assert (said, raised.status, raised.message) == (["one"], 403, "Input flagged by moderation")
    assert breaker.state is BreakerState.CLOSED


NO_MODEL, OUR_KEY, SPENT = refused(404), refused(401), refused(402)
BUSY, DOWN = refused(429, retry_after=60), refused(503)
ENDS: dict[str, tuple[list[OpenAISSEError], OpenAISSEError, dict[str, str]]] = {
    "one is overloaded, the other has no such model": ([BUSY, NO_MODEL], BUSY, {"Retry-After": "60"}),
    "the same the other way round": ([NO_MODEL, BUSY], BUSY, {"Retry-After": "60"}),
    "one is overloaded, the other refuses our key": ([BUSY, OUR_KEY], BUSY, {"Retry-After": "60"}),
    "one is down, the other is out of credit": ([DOWN, SPENT], DOWN, {"x-should-retry": "false"}),
    "one has no such model, the other refuses our key": ([OUR_KEY, NO_MODEL], OUR_KEY, {"x-should-retry": "false"}),
    "none has such a model": ([NO_MODEL, refused(404)], NO_MODEL, {"x-should-retry": "false"}),
    "one is down, the other says until when": ([BUSY, DOWN], BUSY, {"Retry-After": "60"}),
}


@pytest.mark.parametrize(("failures", "told", "headers"), ENDS.values(), ids=ENDS)
async def test_if_several_fail_in_different_ways_the_caller_is_told_what_says_most(
    failures: list[OpenAISSEError], told: OpenAISSEError, headers: dict[str, str]
) -> None:
    scripts = [named(str(place), [copy.copy(each)]) for place, each in enumerate(failures)]
    *_, raised = await attempts(
        *scripts, backoff=Backoff(retries=0) if DOWN in failures and SPENT in failures else SOON
    )
    assert (raised.status, raised.code, raised.headers()) == (told.status, told.code, headers)


async def test_a_retry_is_not_begun_if_its_response_would_begin_before() -> None:
    later, never = time.monotonic() + 100, None
    busy = refused(429, retry_after=300)
    patient = Backoff(retries=3, delay=0, longest=500)
    *said, raised = await attempts(named("one", [copy.copy(busy)], "hello"), backoff=patient, commits=lambda: later)
    assert (said, raised.headers()) == (["one", "upstream_refused!"], {"Retry-After": "300"})
    # Another upstream is asked at once, and what its failure says less does not hide the wait.
    *said, raised = await attempts(
        named("one", [copy.copy(busy)], "hello"), named("two", [refused(404)]), backoff=patient, commits=lambda: later
    )
    assert said == ["one", "upstream_refused", "two", "upstream_refused!"]
    assert (raised.status, raised.headers()) == (429, {"Retry-After": "300"})
    # A shorter wait is begun, and so is any once the response has begun, or if none waits.
    for commits in (lambda: later, lambda: time.monotonic() - 1, lambda: never, None):
        said = await attempts(named("one", [refused(429)], "hello"), backoff=patient, commits=commits)
        assert said == ["one", "upstream_refused", "one", "complete"]


async def test_the_whole_of_it_ends_in_time() -> None:
    *said, raised = await attempts(named("one", down()), backoff=Backoff(delay=100), total=99 * 0.7)
    assert said == ["one", "upstream_unreachable!"]
    assert isinstance(raised, UpstreamUnreachable)


# Several ------------------------------------------------------------------------------------------------------------


async def test_another_one_is_asked_at_once_and_the_first_again_later() -> None:
    one, two, three = named("one", down(), "hello"), named("two", [UpstreamGarbled()]), named("three", down(), "never")
    said = await attempts(one, two, three)
    assert said == [
        *("one", "upstream_unreachable", "two", "upstream_garbled", "three", "upstream_unreachable"),
        *("one", "complete"),
    ]
    assert (len(two.requests), len(three.requests)) == (1, 1)


@pytest.mark.parametrize("failure", [UpstreamCredentials, FirstOutputTimeout, UpstreamGarbled])
async def test_what_the_same_one_is_not_asked_again_another_one_is(failure: type[OpenAISSEError]) -> None:
    said = await attempts(named("one", [failure()]), named("two", "hello"))
    assert said == ["one", failure.code, "two", "complete"]
    *said, raised = await attempts(named("one", [failure()]))
    assert (said, type(raised)) == (["one", f"{failure.code}!"], failure)


async def test_only_those_who_have_the_model_are_asked_and_by_their_own_name_for_it() -> None:
    other = Candidate(upstream=named("other", "hello"), models=frozenset({"x"}))
    alias = Candidate(upstream=named("alias", "hello"), models=frozenset(), aliases={"m": "their-m"})
    assert await attempts(other, alias) == ["alias", "complete"]
    assert alias.upstream.requests[0]["model"] == "their-m"  # type: ignore[attr-defined]
    [raised] = await attempts(other)
    assert isinstance(raised, ModelNotFound)


async def test_equals_are_asked_by_their_weight() -> None:
    light, heavy = named("light", "hello"), named("heavy", "hello")
    several = Upstreams([Candidate(upstream=light), Candidate(upstream=heavy, weight=9)], backoff=SOON)
    for _ in range(300):
        await several.run(BODY, Notes(), principal=ME)
    assert len(light.requests) + len(heavy.requests) == 300
    # 30 are to be expected; that it is none, or more than 75, happens once in more than 10^12 times.
    assert 0 < len(light.requests) < 75


async def test_an_upstream_that_keeps_failing_is_spared_while_there_is_another() -> None:
    one, two = named("one", down()), named("two", "hello")
    breaker = Breaker(failures=2, reset=3600)
    several = Upstreams(
        [Candidate(upstream=one, breaker=breaker), Candidate(upstream=two, priority=1)], backoff=Backoff(retries=0)
    )
    for _ in range(5):
        await several.run(BODY, Notes(), principal=ME)
    assert (len(one.requests), len(two.requests), breaker.state) == (2, 5, BreakerState.OPEN)


async def test_the_last_one_is_asked_even_if_it_keeps_failing() -> None:
    upstream = named("one", *[down()] * 8, "hello")
    several = Upstreams(
        [Candidate(upstream=upstream, breaker=Breaker(failures=1, reset=3600))], backoff=Backoff(retries=0)
    )
    for _ in range(8):
        with pytest.raises(UpstreamUnreachable):
            await several.run(BODY, Notes(), principal=ME)
    await several.run(BODY, Notes(), principal=ME)


async def test_a_request_that_is_at_fault_does_not_count_against_its_upstream() -> None:
    breaker = Breaker(failures=1, reset=3600)
    await attempts(Candidate(upstream=named("one", [refused(400)]), breaker=breaker))
    assert breaker.state is BreakerState.CLOSED


async def test_a_slow_beginning_counts_as_a_failure() -> None:
    breaker, gate = Breaker(failures=1, reset=3600), asyncio.Event()
    upstream = named("one", [ROLE, gate.wait, chunk("hello"), finish()])
    several = Upstreams([Candidate(upstream=upstream, breaker=breaker)], slow=0)
    running = asyncio.ensure_future(several.run(BODY, Notes(), principal=ME))
    # The timer stands before this one in the loop's queue.
    asyncio.get_running_loop().call_later(0.001, gate.set)
    await running
    assert breaker.state is BreakerState.OPEN


async def test_who_leaves_says_nothing_about_the_upstream() -> None:
    breaker = Breaker(failures=1, reset=0)
    upstream = named("one", [asyncio.Event().wait])
    several = Upstreams([Candidate(upstream=upstream, breaker=breaker)], backoff=SOON)
    running = asyncio.ensure_future(several.run(BODY, Notes(), principal=ME))
    while not upstream.running:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert (breaker.state, upstream.cancelled) == (BreakerState.CLOSED, 1)


async def test_the_models_are_those_of_all_who_answer() -> None:
    class Lists(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            return [{"id": each, "owned_by": self.name} for each in ("a", "b", "big-c")]

    class Down(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            raise UpstreamUnreachable("down")

    lists = Candidate(upstream=Lists(), models=frozenset({"a"}), aliases={"c": "big-c", "d": "gone"})
    found = await Upstreams([Candidate(upstream=Down()), lists]).models(principal=ME)
    assert found == [{"id": "a", "owned_by": "scripted"}, {"id": "c", "owned_by": "scripted"}]
    with pytest.raises(UpstreamUnreachable):
        await Upstreams([Candidate(upstream=Down())]).models(principal=ME)


async def test_of_an_upstream_that_does_not_list_its_models_those_are_listed_that_are_configured() -> None:
    class Down(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            raise UpstreamUnreachable("down")

    down = Candidate(upstream=Down(), models=frozenset({"b", "a"}), aliases={"c": "big-c"})
    listing = await Upstreams([down]).list_models(principal=ME)
    assert [(each["id"], each["object"], each["owned_by"]) for each in listing.models] == [
        ("a", "model", "scripted"),
        ("b", "model", "scripted"),
        ("c", "model", "scripted"),
    ]
    assert isinstance(listing.failure, UpstreamUnreachable)


async def test_upstreams_are_asked_for_their_models_at_the_same_time() -> None:
    asked = asyncio.Barrier(2)

    class Waits(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            await asked.wait()
            return [{"id": self.name}]

    one, two = Candidate(upstream=Waits()), Candidate(upstream=Waits())
    one.upstream.name, two.upstream.name = "one", "two"
    async with asyncio.timeout(5):
        assert await Upstreams([one, two]).models(principal=ME) == [{"id": "one"}, {"id": "two"}]


class Hangs(ScriptedUpstream):
    """An upstream of an app's own whose list never comes."""

    asked = 0

    async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
        self.asked += 1
        return await asyncio.Event().wait() or []


async def test_a_list_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listing.PATIENCE == 8  # as docs/reference/routes.md says
    monkeypatch.setattr(several_module, "PATIENCE", 0.05)
    hangs = Candidate(upstream=Hangs(), aliases={"c": "big-c"})
    async with asyncio.timeout(5):
        found = await Upstreams([hangs, Candidate(upstream=ScriptedUpstream())]).list_models(principal=ME)
    assert [model["id"] for model in found.models] == ["c", "scripted"]
    assert isinstance(found.failure, TotalTimeout)


async def test_an_upstream_whose_list_took_too_long_is_not_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(several_module, "PATIENCE", 0.05)
    monkeypatch.setattr(several_module, "time", SimpleNamespace(monotonic=clock))
    upstream = Hangs()
    several = Upstreams([Candidate(upstream=upstream)])
    failures = []
    for seconds, asked in ((0, 1), (5, 1), (4.9, 1), (0.2, 2), (5, 2)):
        clock.now += seconds
        failures.append((await several.list_models(principal=ME)).failure)
        assert upstream.asked == asked
    assert {type(failure) for failure in failures} == {TotalTimeout}
    with pytest.raises(TotalTimeout) as raised:  # and it keeps no request in memory
        await several.models(principal=ME)
    assert all(failure.__traceback__ is not raised.value.__traceback__ for failure in failures)
    assert len({id(failure) for failure in (*failures, raised.value)}) == 6


async def test_a_list_that_fails_is_logged_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Any] = [UpstreamUnreachable("sk-secret"), UpstreamUnreachable("x"), [{"id": "m"}], ValueError("odd")]

    class Flaky(ScriptedUpstream):
        async def models(self, *, principal: Principal) -> list[dict[str, Any]]:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    several = Upstreams([Candidate(upstream=Flaky())])
    listings = [await several.list_models(principal=ME) for _ in list(outcomes)]
    assert [listing.models for listing in listings] == [[], [], [{"id": "m"}], []]
    assert [type(listing.failure) for listing in listings] == [
        *(UpstreamUnreachable, UpstreamUnreachable, type(None), OpenAISSEError)
    ]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "scripted does not list its models: upstream_unreachable"),
        ("WARNING", "scripted does not list its models"),
    ]
    assert caplog.records[1].exc_info is not None  # an app's own upstream raised something else


# Through the app ----------------------------------------------------------------------------------------------------


async def asked(create_app: CreateApp, serve: Serve, upstream: Any, body: Any = BODY, **options: Any) -> Any:
    """The response, the record, and the kinds of events."""
    app, ai = create_app(upstream, **{"retries": 3, "retry_delay": 0, **options})
    events: list[StreamEvent] = []
    over = asyncio.Event()

    @ai.observe
    async def note(event: StreamEvent) -> None:
        events.append(event)
        if event.kind == "ended":
            over.set()

    client = await serve(app)
    response = await client.post("/v1/chat/completions", json=body)
    await over.wait()
    return response, events[-1].record, [event.kind for event in events]


FAILURES: dict[str, Callable[[], list[Any]]] = {
    "a status": lambda: [refused(503)],
    "a broken connection": down,
    "a broken stream after its preamble": lambda: [ROLE, chunk("", role=None), UpstreamTruncated()],
    "an error in the stream after its preamble": lambda: [ROLE, error("overloaded", code=503)],
    "an error in a stream that says nothing else": lambda: [error("overloaded", code=503)],
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "in one piece"])
async def test_the_client_sees_one_answer_whatever_failed_before_it(
    create_app: CreateApp, serve: Serve, failure: Callable[[], list[Any]], streaming: bool
) -> None:
    upstream = ScriptedUpstream(failure(), failure(), "hello")
    response, record, kinds = await asked(create_app, serve, upstream, {**BODY, "stream": streaming})
    if streaming:
        stream = await read(response.content)
        assert (response.status_code, stream.text, stream.outcome) == (200, "hello", "completed")
        assert response.content.count(b'"role"') == 1
    else:
        assert response.json()["choices"][0]["message"]["content"] == "hello"
    assert kinds == ["started", "retried", "retried", "first_chunk", "ended"]
    assert (record.attempts, len(record.failures), record.outcome) == (3, 2, "completed")


async def test_spent_attempts_are_a_true_status_and_no_sdk_tries_again(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([refused(503)])
    response, record, kinds = await asked(create_app, serve, upstream)
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert kinds == ["started", "retried", "retried", "retried", "ended"]
    assert (record.attempts, record.failures) == (4, ("scripted: upstream_refused",) * 4)


async def test_an_apps_model_calls_again_too_and_it_does_not_see_it(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream([ROLE, UpstreamTruncated()], "hello"), retries=1, retry_delay=0)
    events: asyncio.Queue[StreamEvent] = asyncio.Queue()
    ai.observe(events.put)
    seen = []

    @ai.model("agent")
    async def agent(chat: Any) -> Any:
        async for each in chat.call("scripted", chat.messages):
            seen.append(each["choices"][0]["delta"])
            yield each

    client = await serve(app)
    stream = await read((await client.post("/v1/chat/completions", json={**BODY, "model": "agent"})).content)
    assert (stream.text, stream.outcome) == ("hello", "completed")
    assert seen[:2] == [{"role": "assistant", "content": ""}, {"content": "hello"}]
    while (event := await events.get()).kind != "ended":
        pass
    record = event.record
    assert (record.upstream, record.attempts, record.failures) == ("app", 2, ("scripted: upstream_truncated",))


async def test_leaving_ends_the_wait_for_another_attempt(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream([refused(503)])
    app, ai = create_app(upstream, retries=3, retry_delay=100, commit_after=3600)
    waiting, over, records = asyncio.Event(), asyncio.Event(), []

    @ai.observe
    async def watch(event: StreamEvent) -> None:
        if event.kind == "retried":
            waiting.set()
        elif event.kind == "ended":
            records.append(event.record)
            over.set()

    client = await serve(app)
    asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    await waiting.wait()
    asking.cancel()
    await over.wait()
    assert [(each.outcome, each.reason, each.attempts) for each in records] == [("stopped", "client_left", 1)]
    assert len(upstream.requests) == 1


async def test_a_late_200_is_followed_by_a_failed_end(create_app: CreateApp, serve: Serve) -> None:
    committed = asyncio.Event()
    app, _ = create_app(ScriptedUpstream([committed.wait, refused(503)]), retries=1, retry_delay=0, commit_after=0)
    client = await serve(app)
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        assert response.status_code == 200
        committed.set()
        stream = await read(response.aiter_raw())
    assert (stream.outcome, stream.error["code"]) == ("failed", "upstream_refused")


# The wait of a response ---------------------------------------------------------------------------------------------

HOURS = {"retries": 3, "commit_after": 100, "retry_after_max": 500}


def busy_once() -> ScriptedUpstream:
    """An upstream that is busy for longer than a response waits for it."""
    return ScriptedUpstream([refused(429, retry_after=300)], "hello")


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/v1/chat/completions", {}), ("/v1/streams", {"Accept": "text/event-stream"})],
    ids=["chat", "streams"],
)
async def test_while_a_response_waits_no_longer_wait_is_begun(
    create_app: CreateApp, serve: Serve, path: str, headers: dict[str, str]
) -> None:
    client = await serve(create_app(busy_once(), **HOURS)[0])
    response = await client.post(path, json=BODY, headers=headers)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "300")
    assert "x-should-retry" not in response.headers


async def test_a_call_of_an_apps_model_begins_none_either(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(busy_once(), **HOURS)

    @ai.model("agent")
    async def agent(chat: Any) -> Any:
        yield (await chat.call("scripted", chat.messages))["content"]

    response = await (await serve(app)).post("/v1/chat/completions", json={**BODY, "model": "agent"})
    assert (response.status_code, response.headers["Retry-After"]) == (429, "300")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/streams", BODY),
        ("/start", BODY),
        ("/complete", BODY),
        ("/v1/chat/completions", {**BODY, "stream": False}),
        ("/v1/chat/completions", {**BODY, "model": "agent"}),
    ],
    ids=["201", "ai.start", "ai.complete", "in one piece", "after output"],
)
async def test_what_no_response_waits_for_is_waited_for(
    create_app: CreateApp, serve: Serve, path: str, body: Any
) -> None:
    app, ai = create_app(busy_once(), **HOURS)
    retried = asyncio.Event()

    @ai.observe
    async def note(event: StreamEvent) -> None:
        if event.kind == "retried":
            retried.set()

    @ai.model("agent")
    async def agent(chat: Any) -> Any:
        yield "At once. "
        yield (await chat.call("scripted", chat.messages))["content"]

    @app.post("/start")
    async def start() -> dict[str, str]:
        return {"id": (await ai.start(await ai.body(), principal=await ai.principal())).id}

    @app.post("/complete")
    async def complete() -> dict[str, str]:
        return await ai.complete(await ai.body(), principal=await ai.principal())

    asking = asyncio.ensure_future((await serve(app)).post(path, json=body))
    await retried.wait()
    asking.cancel()


# On sockets ---------------------------------------------------------------------------------------------------------


async def hello(peer: Peer) -> None:
    await peer.send(HEAD + chunked(chunk("hello")) + chunked(finish()) + END)


async def test_three_upstreams_one_dead_one_slow_one_that_fails_after_its_preamble(
    create_app: CreateApp, serve: Serve
) -> None:
    async def silent(peer: Peer) -> None:
        await peer.send(HEAD + chunked(ROLE))
        await peer.gone()

    async def breaks_once(peer: Peer) -> None:
        if len(flaky.requests) == 1:
            await peer.send(HEAD + chunked(ROLE) + b"ff\r\nhalf")
            raise Hangup
        await hello(peer)

    async with raw_upstream(hello) as dead:
        gone = dead.base_url
    async with raw_upstream(silent) as slow, raw_upstream(breaks_once) as flaky:
        upstreams = [
            {"name": "dead", "base_url": gone, "aliases": {"m": "dead-m"}},
            {"name": "slow", "base_url": slow.base_url, "aliases": {"m": "slow-m"}},
            {"name": "flaky", "base_url": flaky.base_url, "aliases": {"m": "flaky-m"}},
        ]
        response, record, kinds = await asked(
            create_app, serve, None, upstreams=upstreams, first_output_timeouts={"slow-m": 0.2}, breaker_failures=2
        )
        assert (await read(response.content)).text == "hello"
        assert b'"flaky-m"' in flaky.requests[0].body
    assert record.failures[:3] == (
        "dead: upstream_unreachable",
        "slow: first_output_timeout",
        "flaky: upstream_truncated",
    )
    assert (record.upstream, record.outcome) == ("flaky", "completed")
    assert kinds.count("retried") == len(record.failures) == record.attempts - 1


async def test_a_connection_that_was_closed_meanwhile_is_no_failure(create_app: CreateApp, serve: Serve) -> None:
    closing = asyncio.Event()

    async def leaves(peer: Peer) -> None:
        if len(server.requests) == 2:  # the same connection, which it had promised to keep
            closing.set()
            raise Hangup
        await hello(peer)

    async with raw_upstream(leaves) as server:
        app, _ = create_app(None, base_url=server.base_url)
        client = await serve(app)
        for _ in range(2):
            response = await client.post("/v1/chat/completions", json=BODY)
            assert (await read(response.content)).text == "hello"
        assert closing.is_set()
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_fresh_connection_that_is_closed_is_a_failure(create_app: CreateApp, serve: Serve) -> None:
    async def leaves(peer: Peer) -> None:
        raise Hangup

    async with raw_upstream(leaves) as server:
        client = await serve(create_app(None, base_url=server.base_url)[0])
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 502
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_the_next_key_is_taken_where_one_is_refused(create_app: CreateApp, serve: Serve, status: int) -> None:
    async def answer(peer: Peer) -> None:
        if b"Bearer key-good" in peer.head:
            await hello(peer)
        else:
            await peer.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    async with raw_upstream(answer) as server:
        app, ai = create_app(None, base_url=server.base_url, api_keys=["key-spent", "key-stolen", "key-good"])
        records: asyncio.Queue[StreamRecord] = asyncio.Queue()

        @ai.observe
        async def note(event: StreamEvent) -> None:
            if event.kind == "ended":
                await records.put(event.record)

        client = await serve(app)
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
        first, second = await records.get(), await records.get()
    assert (first.attempts, second.attempts) == (3, 1)  # the good one is kept
    assert len(first.failures) == 2


@pytest.mark.parametrize("spent", [401, 402])
@pytest.mark.parametrize("keys", [["key-busy", "key-spent"], ["key-spent", "key-busy"]])
async def test_a_key_over_its_rate_limit_is_asked_again_beside_one_that_is_refused_for_longer(
    create_app: CreateApp, serve: Serve, keys: list[str], spent: int
) -> None:
    async def answer(peer: Peer) -> None:
        busy = [b"Bearer key-busy" in each.head for each in server.requests].count(True)
        if b"Bearer key-busy" in peer.head and busy > 1:
            await hello(peer)
        else:
            status = 429 if b"Bearer key-busy" in peer.head else spent
            await peer.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    async with raw_upstream(answer) as server:
        client = await serve(create_app(None, base_url=server.base_url, api_keys=keys, retries=1, retry_delay=0)[0])
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200


async def test_a_refusal_of_the_content_is_sent_with_no_other_key(create_app: CreateApp, serve: Serve) -> None:
    async def refuse(peer: Peer) -> None:
        body = b'{"error": {"code": 403, "message": "no", "metadata": {"reasons": ["violence"]}}}'
        await peer.send(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_upstream(refuse) as server:
        client = await serve(create_app(None, base_url=server.base_url, api_keys=["one", "two"])[0])
        response = await client.post("/v1/chat/completions", json=BODY)
        assert (response.status_code, response.json()["error"]["metadata"]) == (403, {"reasons": ["violence"]})
        assert len(server.requests) == 1


async def test_when_every_key_is_refused_the_refusal_is_told_and_each_is_in_the_log(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 401 No\r\nContent-Length: 11\r\n\r\nNo account.")

    async with raw_upstream(refuse) as server:
        client = await serve(create_app(None, base_url=server.base_url, api_keys=["one", "two"])[0])
        response = await client.post("/v1/chat/completions", json=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_credentials")
        assert len(server.requests) == 2
    line = "upstream_credentials; callers are not told: status 401: No account."
    assert [line in record.getMessage() for record in caplog.records if record.name == "quart_openai_sse"] == [True] * 2


async def test_what_an_upstream_of_the_apps_own_says_is_in_the_log_too(caplog: pytest.LogCaptureFixture) -> None:
    await attempts(named("one", [refused(402, "You have $0.02 left.")]))
    assert [record.getMessage() for record in caplog.records] == [
        "one: upstream_quota; callers are not told: status 402: You have $0.02 left."
    ]


# Configuration ------------------------------------------------------------------------------------------------------


def test_no_key_is_sent_to_another_server() -> None:
    secrets = {"api_key": "sk-secret", "organization": "org", "headers": {"X-Secret": "s"}, "api_key_header": "api-key"}
    config = Config(base_url="https://one.example/v1", **secrets)  # type: ignore[arg-type]
    same = config.of(UpstreamConfig(base_url="https://one.example/other"))
    assert {name: getattr(same, name) for name in secrets} == secrets
    for address in ("https://two.example/v1", "http://one.example/v1", "https://one.example:8443/v1"):
        other = config.of(UpstreamConfig(base_url=address))
        assert (other.api_key, other.organization, other.headers, other.api_key_header) == (
            None,
            "",
            {},
            "Authorization",
        )
    own = config.of(UpstreamConfig(base_url="https://one.example/v1", api_keys=("a", "b")))
    assert (own.api_key, own.api_keys) == (None, ("a", "b"))


def test_the_keys_of_upstreams_are_not_to_be_seen() -> None:
    config = Config(
        api_keys=("sk-secret",), upstreams=(UpstreamConfig(base_url="https://x.example", api_key="sk-secret"),)
    )
    assert "sk-secret" not in repr(config)


@pytest.mark.parametrize("code", [401, 429])
async def test_no_other_key_is_taken_after_output(create_app: CreateApp, serve: Serve, code: int) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(HEAD + chunked(chunk("one")) + chunked(error("no more", code=code)) + END)

    async with raw_upstream(answer) as server:
        client = await serve(create_app(None, base_url=server.base_url, api_keys=["one-key", "other-key"])[0])
        seen = await read((await client.post("/v1/chat/completions", json=BODY)).content)
        assert (seen.text, seen.outcome, len(server.requests)) == ("one", "failed", 1)
