"""The threads of hooks: bounded, nobody else's, and none that holds up the exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from quart_openai_sse.relay import threads as module
from quart_openai_sse.relay.threads import HookThreads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hanging calls wait for; it is opened after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_a_call_runs_in_a_thread_in_the_context_of_its_caller() -> None:
    name: ContextVar[str] = ContextVar("name")
    name.set("ann")
    threads = HookThreads(1, name="hooks")
    found = await threads.submit(lambda greeting: (greeting, name.get(), threading.current_thread()), "hi").result()
    assert found[:2] == ("hi", "ann")
    assert (found[2].name, found[2].daemon) == ("hooks", True)


async def test_a_thread_is_used_again_and_ends_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = HookThreads(5, name="hooks")
    first = await threads.submit(threading.current_thread).result()
    while not threads._idle:
        await asyncio.sleep(0)
    monkeypatch.setattr(module, "_IDLE", 0)
    assert await threads.submit(threading.current_thread).result() is first
    await asyncio.get_running_loop().run_in_executor(None, first.join)
    assert threads._threads == 0
    assert await threads.submit(threading.current_thread).result() is not first


async def test_more_calls_than_threads_wait_for_one_in_their_order(gate: threading.Event) -> None:
    threads, running, most = HookThreads(3, name="hooks"), set(), 0

    def call(number: int) -> int:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        gate.wait()
        running.discard(number)
        return number

    calls = [threads.submit(call, number) for number in range(10)]
    while len(running) < 3:
        await asyncio.sleep(0)
    assert running == {0, 1, 2}
    gate.set()
    assert await asyncio.gather(*(each.result() for each in calls)) == list(range(10))
    assert most == 3


async def test_the_threads_are_exhausted_while_each_runs_a_call(gate: threading.Event) -> None:
    threads = HookThreads(2, name="hooks")
    await threads.submit(bool).result()
    while not threads._idle:
        await asyncio.sleep(0)
    begun: list[int] = []
    found = [threads.exhausted]
    calls = []
    for number in (1, 2):
        calls.append(threads.submit(lambda number=number: begun.append(number) or gate.wait()))
        while len(begun) < number:
            await asyncio.sleep(0)
        found.append(threads.exhausted)
    assert found == [False, False, True]
    gate.set()
    await asyncio.gather(*(each.result() for each in calls))


async def test_a_call_that_waits_for_a_thread_can_be_withdrawn_and_is_never_made(gate: threading.Event) -> None:
    threads, made = HookThreads(1, name="hooks"), []
    hanging = asyncio.ensure_future(threads.submit(gate.wait).result())
    waiting = asyncio.ensure_future(threads.submit(made.append, 1).result())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert threads.abandoned == 0
    gate.set()
    await hanging
    await threads.submit(made.append, 2).result()
    assert made == [2]


async def test_a_call_that_is_left_is_counted_until_it_ends_and_keeps_its_thread(gate: threading.Event) -> None:
    threads, begun = HookThreads(1, name="hooks"), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()

    left = asyncio.ensure_future(threads.submit(hang).result())
    await begun.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert (threads.abandoned, threads._threads) == (1, 1)
    gate.set()
    await threads.submit(bool).result()
    assert (threads.abandoned, threads._threads) == (0, 1)


@pytest.mark.parametrize("after_the_call", [0, 1])
async def test_a_cancellation_beside_the_end_of_a_call_counts_no_call_that_hangs(after_the_call: int) -> None:
    threads = HookThreads(1, name="hooks")
    call = threads.submit(bool)
    task = asyncio.ensure_future(call.result())
    await asyncio.sleep(0)
    if after_the_call:
        await asyncio.wait({call._future})
        task.cancel()
    else:
        while not threads._idle:  # without a turn of the event loop: its result is on its way
            pass
        task.cancel()
    await asyncio.wait({task})
    await threads.submit(bool).result()
    assert threads.abandoned == 0


@pytest.mark.parametrize("raised", [ValueError, StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_an_exception_of_any_kind_is_only_the_calls(raised: type[BaseException]) -> None:
    def call() -> None:
        raise raised

    threads = HookThreads(1, name="hooks")
    expected = ValueError if raised is ValueError else RuntimeError
    with pytest.raises(expected) as found:
        await threads.submit(call).result()
    assert raised is ValueError or isinstance(found.value.__cause__, raised)
    assert await threads.submit(bool).result() is False


async def test_a_system_without_more_threads_refuses_a_call_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = HookThreads(2, name="hooks")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.submit(bool)
    assert await threads.submit(bool).result() is False


def test_neither_the_end_of_a_loop_nor_that_of_the_process_waits_for_a_call_that_hangs() -> None:
    program = """if True:
        import asyncio, threading
        from quart_openai_sse.relay.threads import HookThreads
        begun = threading.Event()
        async def main():
            hang = lambda: begun.set() or threading.Event().wait()
            asyncio.ensure_future(HookThreads(2, name="hooks").submit(hang).result())
            while not begun.is_set():
                await asyncio.sleep(0)
        asyncio.run(main())
        print("ended")
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert (ended.stdout, ended.stderr) == ("ended\n", "")


def test_a_call_that_outlives_its_loop_is_quiet(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_IDLE", 0)
    begun = threading.Event()

    def hang() -> None:
        begun.set()
        gate.wait()

    async def main() -> None:
        call = HookThreads(2, name="hooks of a loop that ends").submit(hang)
        while not begun.is_set():
            await asyncio.sleep(0)
        call.leave()

    asyncio.run(main())
    [thread] = [each for each in threading.enumerate() if each.name == "hooks of a loop that ends"]
    gate.set()
    thread.join()
    assert capfd.readouterr().err == ""
