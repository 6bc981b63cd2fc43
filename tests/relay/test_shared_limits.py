"""Limits that count for all workers: engines that share a Redis or a file, and processes that die or freeze."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis

from quart_openai_sse import Principal
from quart_openai_sse.config import Config
from quart_openai_sse.errors import KeyReused, TokensSpent, TooManyReaders, TooManyStreams
from quart_openai_sse.limits import Holding, Leases, Others, SharedCounts
from quart_openai_sse.limits.redis import RedisCounts
from quart_openai_sse.limits.sqlite import SQLiteCounts
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.relay.hooks import Hooks
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish
from tests.relay.test_spending import end_of

ME = Principal("ann")
ROOT = Path(__file__).parents[2]

PROCESS = """
import asyncio, sys
from tests.relay.test_shared_limits import ME, asks, counts_at, new_relay
from quart_openai_sse.testing import Gate, ScriptedUpstream

async def main():
    address, lease, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    relay = new_relay(ScriptedUpstream([Gate()]), counts_at(address, lease=lease), max_streams_per_principal=7)
    started = await asyncio.gather(*(relay.start(asks(), principal=ME) for _ in range(count)), return_exceptions=True)
    print(sum(not isinstance(each, Exception) for each in started), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await relay.aclose()

asyncio.run(main())
"""


def asks(characters: int = 4, **members: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "x" * characters}], "stream": True, **members}


def usage(total: int) -> dict[str, int]:
    return {"prompt_tokens": total - 1, "completion_tokens": 1, "total_tokens": total}


def counts_at(address: str, *, lease: float = 15) -> SharedCounts:
    """The counts of another process: in a file, or in the Redis with this socket."""
    if address.endswith(".sock"):
        return RedisCounts(Redis.from_pool(BlockingConnectionPool.from_url(f"unix://{address}")), lease=lease)
    return SQLiteCounts(address, lease=lease)


def new_relay(upstream: ScriptedUpstream, counts: SharedCounts, *, log: Any = None, **options: Any) -> Relay:
    config = Config(base_url="http://127.0.0.1:9/v1", **options)
    return Relay(config=config, log=log or MemoryLog(), create_upstream=lambda: upstream, hooks=Hooks(), counts=counts)


async def start(relay: Relay, body: dict[str, Any] | None = None, **options: Any) -> Any:
    """The handle of a stream, or its refusal."""
    try:
        return await relay.start(body or asks(), principal=options.pop("principal", ME), **options)
    except (TooManyStreams, TooManyReaders, TokensSpent) as refusal:
        return refusal


async def close(relay: Relay) -> None:
    for reader in list(relay.readers._open):
        await relay.readers.leave(reader)
    await relay.aclose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


class Told:
    """Counts that remember what they were told."""

    def __init__(self, counts: SharedCounts) -> None:
        self.counts = counts
        self.lease = counts.lease
        self.told: list[Holding] = []

    async def renew(self) -> Leases:
        return await self.counts.renew()

    async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
        self.told += holdings
        return await self.counts.count(holdings)

    async def aclose(self) -> None:
        await self.counts.aclose()


class LateLog(MemoryLog):
    """A log that creates the first stream after it was asked for one that is not there yet."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = asyncio.Event()

    async def create(self, key: str, **about: Any) -> Any:
        await self._asked.wait()
        return await super().create(key, **about)

    async def tail(self, key: str) -> tuple[str, bool]:
        try:
            return await super().tail(key)
        finally:
            self._asked.set()


class SharedLimits:
    """What holds whichever store counts. A test class defines the fixture `address`."""

    @pytest.fixture
    async def relays(self, address: str) -> AsyncIterator[Any]:
        """Makes the engines of several workers."""
        async with AsyncExitStack() as stack:

            def create(
                upstream: ScriptedUpstream, *, lease: float = 15, wrap: Any = lambda it: it, **options: Any
            ) -> Relay:
                counts = counts_at(address, lease=lease)
                if isinstance(counts, RedisCounts):
                    stack.push_async_callback(counts._client.aclose)
                    stack.push_async_callback(counts._client.connection_pool.aclose)
                relay = new_relay(upstream, wrap(counts), **options)
                stack.push_async_callback(close, relay)
                return relay

            yield create

    @pytest.fixture
    async def new_process(self, address: str) -> AsyncIterator[Any]:
        """Starts a process that starts so many streams, and returns how many of them run."""
        started: list[asyncio.subprocess.Process] = []

        async def create(count: int, *, lease: float = 15) -> tuple[asyncio.subprocess.Process, int]:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PROCESS,
                address,
                str(lease),
                str(count),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            started.append(process)
            assert process.stdout is not None
            return process, int(await process.stdout.readline())

        yield create
        for process in started:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    # Streams ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("at_once", [15, 200])
    async def test_of_starts_at_once_on_two_workers_as_many_pass_as_allowed(self, relays: Any, at_once: int) -> None:
        gate = Gate()
        two = [relays(ScriptedUpstream([gate, chunk("Hi"), finish()]), max_streams_per_principal=7) for _ in range(2)]
        started = await asyncio.gather(*(start(two[number % 2]) for number in range(at_once)))
        assert Counter(type(each).__name__ for each in started) == {"StreamHandle": 7, "TooManyStreams": at_once - 7}
        assert not isinstance(await start(two[0], principal=Principal("bob")), TooManyStreams)
        gate.open()
        for number, each in enumerate(started):
            if not isinstance(each, TooManyStreams):
                assert (await end_of(two[number % 2], each)).outcome == "completed"

        async def all_are_free() -> bool:
            again = await asyncio.gather(*(start(two[number % 2]) for number in range(7)))
            return not any(isinstance(each, TooManyStreams) for each in again)

        await until(all_are_free)

    @pytest.mark.slow
    @pytest.mark.parametrize("at_once", [15, 200])
    async def test_of_starts_at_once_in_two_processes_as_many_pass_as_allowed(
        self, new_process: Any, at_once: int
    ) -> None:
        both = await asyncio.gather(new_process(at_once - at_once // 2), new_process(at_once // 2))
        assert sum(count for _, count in both) == 7

    async def test_a_principal_may_have_a_limit_of_its_own_and_all_streams_count_here_alone(self, relays: Any) -> None:
        gate = Gate()
        two = [relays(ScriptedUpstream([gate]), max_streams=3) for _ in range(2)]
        guest = Principal("guest", max_streams=1)
        assert not isinstance(await start(two[0], principal=guest), TooManyStreams)
        assert isinstance(await start(two[1], principal=guest), TooManyStreams)
        anonymous = Principal("", anonymous=True)
        for relay, passing in ((two[0], 2), (two[1], 3)):
            started = [await start(relay, principal=anonymous) for _ in range(5)]
            assert sum(not isinstance(each, TooManyStreams) for each in started) == passing
        gate.open()

    async def test_starts_that_fail_or_are_given_up_keep_nothing(self, relays: Any) -> None:
        one, other = (relays(ScriptedUpstream([Gate()]), max_streams_per_principal=1) for _ in range(2))

        async def refuse(body: Any, principal: Principal) -> Any:
            raise ValueError("refused")

        one.hooks.prepare.append(refuse)
        for _ in range(5):
            with pytest.raises(ValueError, match="refused"):
                await one.start(asks(), principal=ME)
        one.hooks.prepare.clear()
        for turns in range(12):
            starting = asyncio.ensure_future(one.start(asks(), principal=ME))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await one.stop(await starting, "over")
                await until(partial(_is_free, one))

        async def free_elsewhere() -> bool:
            return not isinstance(await start(other), TooManyStreams)

        await until(free_elsewhere)

    async def test_an_idempotency_key_attaches_although_the_limit_is_reached(self, relays: Any) -> None:
        gate, log = Gate(), MemoryLog()
        two = [relays(ScriptedUpstream([gate]), max_streams_per_principal=1, log=log) for _ in range(2)]
        handles = await asyncio.gather(*(start(two[number % 2], idempotency_key="k") for number in range(10)))
        assert sorted(each.attached for each in handles) == [False] + [True] * 9
        with pytest.raises(KeyReused):
            await two[1].start(asks(8), principal=ME, idempotency_key="k")
        assert isinstance(await start(two[1], idempotency_key="another"), TooManyStreams)
        gate.open()

    async def test_an_idempotency_key_attaches_to_a_stream_that_has_its_place_and_is_being_created(
        self, relays: Any
    ) -> None:
        gate, log = Gate(), LateLog()
        two = [relays(ScriptedUpstream([gate]), max_streams_per_principal=1, log=log) for _ in range(2)]
        handles = await asyncio.gather(*(start(each, idempotency_key="k") for each in two))
        assert sorted(each.attached for each in handles) == [False, True]
        gate.open()

    async def test_a_worker_that_ends_gives_everything_back(self, relays: Any) -> None:
        one, other = (relays(ScriptedUpstream([Gate()]), max_streams_per_principal=2) for _ in range(2))
        for _ in range(2):
            await start(one, read=True)
        assert isinstance(await start(other), TooManyStreams)
        await close(one)
        assert not isinstance(await start(other), TooManyStreams)

    @pytest.mark.slow
    async def test_the_places_of_a_worker_that_was_killed_come_back(self, relays: Any, new_process: Any) -> None:
        relay = relays(ScriptedUpstream([Gate()]), max_streams_per_principal=7, lease=1)
        process, count = await new_process(7, lease=1)
        assert count == 7
        assert isinstance(await start(relay), TooManyStreams)
        process.kill()

        async def is_free() -> bool:
            return not isinstance(await start(relay), TooManyStreams)

        await until(is_free)
        assert not any([isinstance(await start(relay), TooManyStreams) for _ in range(6)])

    @pytest.mark.slow
    async def test_a_worker_that_was_frozen_counts_again(self, relays: Any, new_process: Any) -> None:
        relay = relays(ScriptedUpstream([Gate()]), max_streams_per_principal=7, lease=1)
        process, _ = await new_process(6, lease=1)
        first = await start(relay)
        assert isinstance(await start(relay), TooManyStreams)
        process.send_signal(signal.SIGSTOP)

        async def is_free() -> bool:
            second = await start(relay)
            if isinstance(second, TooManyStreams):
                return False
            await relay.stop(second, "over")
            await end_of(relay, second)
            return True

        await until(is_free)
        process.send_signal(signal.SIGCONT)

        async def is_full() -> bool:
            return not await is_free()

        await until(is_full)
        assert first is not None

    # Readers ----------------------------------------------------------------------------------------------------------

    async def test_readers_count_on_all_workers(self, relays: Any) -> None:
        log = MemoryLog()
        options = {"log": log, "max_readers_per_stream": 2, "max_readers_per_principal": 3}
        one, other = (relays(ScriptedUpstream([Gate()]), **options) for _ in range(2))
        first = await start(one, read=True)
        reader = await other.read(first)
        for relay in (one, other):
            with pytest.raises(TooManyReaders):
                await relay.read(first)
        second = await start(other, read=True)
        with pytest.raises(TooManyReaders):
            await one.read(second)
        assert isinstance(await start(one, read=True), TooManyReaders)
        await other.readers.leave(reader)

        async def is_free() -> bool:
            with suppress(TooManyReaders):
                await one.read(second)
                return True
            return False

        await until(is_free)

    async def test_a_start_takes_its_stream_its_reader_and_its_tokens_in_one_round_trip(self, relays: Any) -> None:
        made: list[Told] = []

        def wrap(counts: SharedCounts) -> Told:
            made.append(Told(counts))
            return made[-1]

        relay = relays(ScriptedUpstream([Gate()]), tokens_per_principal=5000, wrap=wrap)
        handle = await start(relay, read=True)
        [holding] = made[0].told
        [wish] = holding.wishes
        assert (wish.streams, wish.stream, wish.tokens) == (1, handle.id, 1001)
        await relay.readers.leave(handle.reader)
        plain = await start(relay, retain=False)
        asked = [each for holding in made[0].told[1:] for each in holding.wishes]
        assert [(each.streams, each.stream) for each in asked] == [(1, "")]
        await relay.readers.leave(plain.reader)

    # Tokens -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [15, 200])
    async def test_starts_at_once_pass_the_budget_by_one_request_at_most(self, relays: Any, count: int) -> None:
        gate = Gate()
        options = {"tokens_per_principal": 1000, "max_streams_per_principal": 1000}
        two = [relays(ScriptedUpstream([gate, chunk("Hi"), finish(usage=usage(99))]), **options) for _ in range(2)]
        body = asks(4 * 90, max_tokens=9)  # 99
        started = await asyncio.gather(*(start(two[number % 2], body) for number in range(count)))
        running = [(two[number % 2], each) for number, each in enumerate(started) if not isinstance(each, TokensSpent)]
        assert len(running) == 10  # 990: 10 tokens are left, and the prompt has 90
        refusal = next(each for each in started if isinstance(each, TokensSpent))
        assert (refusal.retry_after, refusal.should_retry) == (5, True)
        gate.open()
        for relay, handle in running:
            assert (await end_of(relay, handle)).outcome == "completed"

        async def is_spent() -> bool:
            refusals = [await start(relay, body) for relay in two]
            return all("of your 1000 are left" in str(refusal) for refusal in refusals)

        await until(is_spent)

    async def test_prompts_that_prepare_makes_longer_do_not_pass_together(self, relays: Any) -> None:
        two = [relays(ScriptedUpstream([Gate()]), tokens_per_principal=1000) for _ in range(2)]
        meeting = asyncio.Barrier(2)

        async def prepare(body: Any, principal: Principal) -> Any:
            await meeting.wait()
            return {**body, "messages": [{"role": "system", "content": "x" * 4 * 600}, *body["messages"]]}

        for relay in two:
            relay.hooks.prepare.append(prepare)
        started = await asyncio.gather(*(start(relay, asks(max_tokens=10)) for relay in two))
        assert [isinstance(each, TokensSpent) for each in started].count(True) == 1

    async def test_a_running_stream_ends_when_the_others_have_spent_the_rest(self, relays: Any) -> None:
        words = [step for _ in range(3000) for step in (chunk("w"), lambda: asyncio.sleep(0.005))]
        one = relays(ScriptedUpstream([*words, finish()]), tokens_per_principal=9000)
        other = relays(ScriptedUpstream([chunk("Hi"), finish(usage=usage(9001))]), tokens_per_principal=9000)
        running = await start(one, asks(max_tokens=10))
        assert (await end_of(other, await start(other, asks(max_tokens=10)))).outcome == "completed"
        end = await end_of(one, running)
        assert (end.outcome, end.reason) == ("failed", "tokens_spent")

    async def test_a_usage_below_the_estimate_gives_the_rest_back_to_all(self, relays: Any) -> None:
        few = [chunk("Hi"), finish(usage=usage(7))]
        one, other = (relays(ScriptedUpstream(few), tokens_per_principal=1000) for _ in range(2))
        for _ in range(3):
            for relay in (one, other):
                await until(partial(_completes, relay, asks(4 * 900, max_tokens=50)))
        assert isinstance(await start(one, asks(4 * 959)), TokensSpent)  # 6 answers of 7 tokens: 958 are left
        assert not isinstance(await start(other, asks(4 * 958)), TokensSpent)

    # Outages ----------------------------------------------------------------------------------------------------------

    async def test_while_the_store_is_away_each_worker_counts_alone_and_at_once(
        self, relays: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Away(Told):
            away = False
            asked = 0

            async def renew(self) -> Leases:
                return await (self.refuse() if self.away else super().renew())

            async def count(self, holdings: Sequence[Holding]) -> Sequence[Others]:
                return await (self.refuse() if self.away else super().count(holdings))

            async def refuse(self) -> Any:
                self.asked += 1
                raise ConnectionError("redis://:s3cret@127.0.0.1")

        made: list[Away] = []

        def wrap(counts: SharedCounts) -> Away:
            made.append(Away(counts))
            return made[-1]

        options = {"max_streams_per_principal": 3, "tokens_per_principal": 2000, "wrap": wrap}
        one, other = (relays(ScriptedUpstream([Gate()]), **options) for _ in range(2))
        body = asks(4 * 290, max_tokens=10)
        assert not isinstance(await start(one, body, read=True), Exception)
        for counts in made:
            counts.away = True
        for relay, passing in ((one, 2), (other, 3)):
            started = [await start(relay, body, read=True) for _ in range(4)]
            assert sum(not isinstance(each, TooManyStreams) for each in started) == passing
        assert isinstance(await start(other, asks(4 * 1200), principal=Principal("eve")), Exception) is False
        assert isinstance(await start(other, asks(4 * 1200), principal=Principal("eve")), TokensSpent)
        assert [counts.asked for counts in made] == [1, 1]  # nothing was asked again for each start
        for counts in made:
            counts.away = False

        await until(partial(_is_back, one, other))

        async def is_known() -> bool:
            [others] = await made[0].count([Holding(owner=made[0].told[0].owner, number=10**6, most_tokens=2000)])
            return others.reserved == 900

        await until(is_known)
        assert "on its own: ConnectionError" in caplog.text
        assert "s3cret" not in caplog.text


async def _is_back(*relays: Relay) -> bool:
    return all(relay.admission.sharing is not None and not relay.admission.sharing.away for relay in relays)


async def _is_free(relay: Relay) -> bool:
    return relay.admission.slots.taken == 0


async def _completes(relay: Relay, body: dict[str, Any]) -> bool:
    """Whether the stream was started: the end of one on another worker may not have been told yet."""
    handle = await start(relay, body)
    return not isinstance(handle, TokensSpent) and (await end_of(relay, handle)).outcome == "completed"


class TestInAFile(SharedLimits):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return str(tmp_path / "counts.db")


class TestOnRedis(SharedLimits):
    @pytest.fixture
    def address(self, redis_server: Path) -> str:
        return str(redis_server)

    async def test_a_redis_that_has_forgotten_everything_is_told_again(self, relays: Any, redis_server: Path) -> None:
        one, other = (
            relays(ScriptedUpstream([Gate()]), max_streams_per_principal=2, tokens_per_principal=9000, lease=1)
            for _ in range(2)
        )
        one.use(ScriptedUpstream([chunk("Hi"), finish()]))
        plain = await start(one, principal=(bob := Principal("bob")), retain=False)
        async for _ in plain.reader:
            pass
        await one.readers.leave(plain.reader)
        one.use(None)
        handles = [await start(one, read=True) for _ in range(2)]
        async with Redis(unix_socket_path=str(redis_server)) as client:
            before = {key for key in await client.keys() if not key.endswith(b"processes")}
            assert len(before) == 4  # ann, two streams of hers, bob
            await client.flushdb()

            async def is_there_again() -> bool:
                return before <= set(await client.keys())

            await until(is_there_again)
        assert isinstance(await start(other), TooManyStreams)
        assert handles[0].reader is not None
        assert isinstance(await start(other, asks(4 * 8999), principal=bob), TokensSpent)

    async def test_a_redis_that_stands_still_holds_up_nothing_and_counts_for_all_again(
        self, relays: Any, redis_server: Path
    ) -> None:
        gate = Gate()
        steps, waits = [gate, chunk("Hi"), finish()], [Gate()]
        one = relays(ScriptedUpstream(steps, waits), max_streams_per_principal=2)
        other = relays(ScriptedUpstream(steps, steps, waits), max_streams_per_principal=2)
        first = await start(one, read=True)
        async with Redis(unix_socket_path=str(redis_server)) as client:
            server = (await client.info("server"))["process_id"]
        os.kill(server, signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                alone = [await start(other, read=True) for _ in range(3)]
                assert [isinstance(each, TooManyStreams) for each in alone] == [False, False, True]
                reader = await one.read(first)
                gate.open()
                for relay, handle in ((one, first), *((other, each) for each in alone[:2])):
                    assert (await end_of(relay, handle)).outcome == "completed"
                await one.readers.leave(reader)
        finally:
            os.kill(server, signal.SIGCONT)

        async def starts() -> bool:
            return not isinstance(await start(one), TooManyStreams)

        await until(partial(_is_back, one, other))
        await until(starts)
        assert await starts()
        assert isinstance(await start(other), TooManyStreams)
