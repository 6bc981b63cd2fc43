"""Starts in a period: in memory, and on a storage that does not answer. `test_starts_on_redis.py` starts a Redis."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.aio.storage import MemoryStorage, Storage
from limits.storage import MemoryStorage as BlockingStorage

from quart_openai_sse import Principal
from quart_openai_sse.errors import TooManyStarts
from quart_openai_sse.limits import starts
from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.limits.windows import MemoryWindow
from quart_openai_sse.testing import ScriptedUpstream
from tests.conftest import ANN, BOB, QUESTION, Clock, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
MINUTE = timedelta(minutes=1)
ME = Principal("ann", "token")


async def passed(hook: Any, times: int, principal: Principal = ME) -> int:
    """How many of so many starts at once pass."""
    found = await asyncio.gather(*(hook({}, principal) for _ in range(times)), return_exceptions=True)
    assert {type(each) for each in found} <= {type(None), TooManyStarts}
    return found.count(None)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=80), st.integers(1, 4))
def test_no_window_of_time_has_more_starts_than_the_limit(steps: list[tuple[str, int]], count: int) -> None:
    clock = Clock()
    window = MemoryWindow(count, 60, clock=clock)
    starts: dict[str, list[float]] = {}
    for key, pause in steps:
        clock.now += pause
        earlier = [at for at in starts.get(key, []) if at > clock.now - 60]
        wait = window.take(key)
        assert wait == (0 if len(earlier) < count else earlier[-count] + 60 - clock.now)
        if not wait:
            starts.setdefault(key, []).append(clock.now)
        assert len(window) == sum(each[-1] > clock.now - 60 for each in starts.values())


def test_the_last_moment_of_a_period_is_not_rounded_away() -> None:
    clock = Clock()
    clock.now = 522487.4311660075
    window = MemoryWindow(1, 3600, clock=clock)
    assert window.take("ann") == 0
    clock.now = 526087.4311660074  # later by the period, less the least that can be told
    assert window.take("ann") > 0


async def test_starts_are_limited_by_principal_whatever_the_route(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    ai.prepare(limit_starts(3, MINUTE))
    client = await serve(app)
    paths = ["/v1/chat/completions", "/v1/streams", "/v1/chat/completions", "/v1/streams", "/v1/chat/completions"]
    answers = [await client.post(path, json=BODY, headers=ANN) for path in paths]
    assert [each.status_code for each in answers] == [200, 201, 200, 429, 429]
    assert answers[3].json()["error"]["code"] == "too_many_starts"
    assert 0 < int(answers[3].headers["Retry-After"]) <= 60
    assert (await client.post("/v1/chat/completions", json=BODY, headers=BOB)).status_code == 200


@pytest.mark.parametrize("at_once", [15, 200])
@pytest.mark.parametrize("storage", ["memory://", MemoryStorage])
async def test_of_starts_that_arrive_at_once_as_many_pass_as_allowed(
    create_app: CreateApp, serve: Serve, at_once: int, storage: Any
) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), max_streams_per_principal=1000)
    ai.prepare(limit_starts(7, MINUTE, storage=storage if isinstance(storage, str) else storage()))
    client = await serve(app)
    answers = await asyncio.gather(*(client.post("/v1/streams", json=BODY) for _ in range(at_once)))
    assert Counter(each.status_code for each in answers) == {201: 7, 429: at_once - 7}


async def test_a_start_that_is_refused_keeps_no_place(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), max_streams_per_principal=1)
    ai.prepare(limit_starts(1, timedelta(hours=1)))
    client = await serve(app)
    answers = [await client.post("/v1/chat/completions", json=BODY) for _ in range(4)]
    codes = [each.json()["error"]["code"] for each in answers[1:]]
    assert codes == ["too_many_starts"] * 3


async def test_a_request_that_finds_its_stream_by_a_key_is_no_start(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream("hello"))
    ai.prepare(limit_starts(1, MINUTE))
    client = await serve(app)
    answers = [await client.post("/v1/streams", json=BODY, headers={"Idempotency-Key": "a"}) for _ in range(3)]
    assert len({each.json()["id"] for each in answers}) == 1


async def test_hooks_with_other_counts_periods_or_names_count_on_their_own() -> None:
    storage = MemoryStorage()
    hooks = [limit_starts(2, MINUTE, storage=storage), limit_starts(3, MINUTE, storage=storage)]
    hooks += [limit_starts(2, 2 * MINUTE, storage=storage), limit_starts(2, MINUTE, storage=storage, name="pictures")]
    assert [await passed(hook, 5) for hook in hooks] == [2, 3, 2, 2]
    assert await passed(limit_starts(2, MINUTE, storage=storage), 5) == 0


async def test_a_storage_is_told_no_name_of_a_principal() -> None:
    storage = MemoryStorage()
    await passed(limit_starts(2, MINUTE, storage=storage), 1)
    (key,) = storage.events
    assert key.startswith("quart_openai_sse/starts/")
    assert "ann" not in key


def test_event_loops_share_the_count_in_memory() -> None:
    hook, counts = limit_starts(5, MINUTE), list[int]()
    threads = [Thread(target=lambda: counts.append(asyncio.run(passed(hook, 20)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 5


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """The port of a server that reads and never answers."""
    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in connected:
        writer.close()


@pytest.mark.parametrize("kind", ["silent", "closed"])
async def test_starts_are_refused_while_the_storage_does_not_answer(
    create_app: CreateApp,
    serve: Serve,
    silent_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    monkeypatch.setattr(starts, "_PATIENCE", 0.05)
    app, ai = create_app(upstream := ScriptedUpstream("hello"))
    address = f"redis://:s3cret@127.0.0.1:{silent_port if kind == 'silent' else 9}/0"
    ai.prepare(limit_starts(1, MINUTE, storage=address))
    client = await serve(app)
    answers = await asyncio.gather(*(client.post("/v1/streams", json=BODY) for _ in range(3)))
    assert [(each.status_code, each.json()["error"]["code"]) for each in answers] == [(503, "limits_unavailable")] * 3
    assert [each.headers["Retry-After"] for each in answers] == ["2"] * 3
    assert upstream.requests == []
    told = [record for record in caplog.records if "starts could not be counted" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING] * 3
    assert "s3cret" not in caplog.text + "".join(each.text for each in answers)


@pytest.mark.parametrize(("count", "seconds"), [(0, 60), (-1, 60), (5, 0), (5, -1), (5, 0.5), (5, 1.5)])
def test_limits_that_are_none_are_refused(count: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="limit_starts"):
        limit_starts(count, timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "storage",
    [
        "",
        "memory",
        "/tmp/s3cret",
        "nowhere://:s3cret@127.0.0.1",
        "redis+cluster://:s3cret@127.0.0.1",
        "redis+s3cret",
        "redis:/:s3cret@127.0.0.1",
        "redis:s3cret",
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(storage: str) -> None:
    with pytest.raises(ValueError, match=r"limit_starts: storage=.*not a URI of a storage") as raised:
        limit_starts(5, MINUTE, storage=storage)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__context__ is None


class Counters(Storage):
    """A storage that has counters only, like Memcached."""

    base_exceptions = OSError
    incr = get = get_expiry = check = reset = clear = None  # type: ignore[assignment]


def test_a_storage_without_moving_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="Counters of limits has no moving windows"):
        limit_starts(5, MINUTE, storage=Counters())
    with pytest.raises(TypeError, match=r"an object of limits\.aio\.storage"):
        limit_starts(5, MINUTE, storage=BlockingStorage())  # type: ignore[arg-type]
