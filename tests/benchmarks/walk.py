"""The way of one streamed request through the package: `python -m tests.benchmarks.walk`. The same on every run."""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import logging
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from quart import Quart

import quart_openai_sse
from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import chunk
from tests.benchmarks.report import aligned
from tests.matrix.environments import Failed
from tests.raw import END, HEAD, Peer, chunked, raw_upstream

PACKAGE = Path(quart_openai_sse.__file__).parent
EVENTS, FURTHER = 4, 8
"""Chunks of text in the stream that is counted, and how many more the other one has."""

PATIENCE = 30.0  # seconds for all streams

INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
"""Code that is counted as part of its function: Python 3.11 and 3.12 differ in which of it are functions."""

TOKEN = "token-ann"
TEXT = chunk("How")
FINISH = chunk(finish_reason="stop")
DONE = b"data: [DONE]\n\n"

DESCRIPTION = "Counts what one plain streamed request runs of this package."

EPILOG = f"""\
The request is POST /v1/chat/completions with a bearer token; the app has the default options, and its upstream is
asked over the package's own transport. The app has answered two such requests before, so the connection to the
upstream is open and nothing is done for the first time. The stream has {EVENTS} chunks of text, or as many
as --events says, one with the finish_reason, and [DONE]; the upstream sends each when the client has received the one
before it.

  functions     of quart_openai_sse, each counted once; comprehensions and generator expressions are part of the
                function they are written in
  calls         of these functions; a coroutine or generator that is resumed is called again
  files         that these functions are in
  rooms         that these files are in; a room is a folder, or a module, that lies directly in quart_openai_sse/
  room changes  calls of a function in another room than that of the call before it

A further event is the difference to a stream with {FURTHER} more chunks of text, divided by {FURTHER}.

The app is called as an ASGI server calls it. The upstream is a socket in the same event loop, and neither is part of
the package. Log lines are written at INFO. The clock advances only when the upstream sends a chunk, so that no timer
expires and no gap is longer than the one before it: the counts depend on the code alone.

Exit codes:
  0  it was counted
  2  it could not be counted: a further event does not run the same each time
"""


@dataclass(frozen=True)
class Function:
    """A function of the package."""

    file: str
    """Its path within the package."""
    name: str

    @property
    def room(self) -> str:
        """The folder or module directly in the package that it is in."""
        return self.file.partition("/")[0].removesuffix(".py")


@dataclass(frozen=True)
class Counts:
    """One line of the summary."""

    functions: int
    calls: int
    files: int
    rooms: int
    changes: int


class Walk:
    """The calls that one stream made, in their order."""

    def __init__(self, calls: Sequence[Function]) -> None:
        self.calls = Counter(calls)
        """By function, in the order of first calls."""
        self.changes = sum(before.room != after.room for before, after in pairwise(calls))

    def counts(self) -> Counts:
        """Those of the whole stream."""
        return _counts(self.calls, self.changes)


def further(walk: Walk, longer: Walk, events: int) -> tuple[dict[Function, int], Counts]:
    """What one event more costs, if *longer* has *events* more than *walk*: the calls by function, and the counts.

    Raises `Failed` if that is no whole number.
    """
    calls = {}
    for function in {**walk.calls, **longer.calls}:
        more = longer.calls[function] - walk.calls[function]
        if more < 0 or more % events:
            raise Failed(f"{events} further events call {function.name} in {function.file} {more} times more")
        if more:
            calls[function] = more // events
    changes = longer.changes - walk.changes
    if changes % events:
        raise Failed(f"{events} further events change the room {changes} times more")
    return calls, _counts(calls, changes // events)


def _counts(calls: Mapping[Function, int], changes: int) -> Counts:
    files, rooms = {each.file for each in calls}, {each.room for each in calls}
    return Counts(len(calls), sum(calls.values()), len(files), len(rooms), changes)


# The request ------------------------------------------------------------------------------------------------------


def walks(*events: int) -> list[Walk]:
    """For each number of *events*, the walk of a stream with so many chunks of text."""
    with _log_lines(), _clock() as tick:
        try:
            return asyncio.run(_walks(events, tick))
        except asyncio.CancelledError:
            raise Failed(f"the stream did not end within {PATIENCE:.0f} s") from None


async def _walks(numbers: Sequence[int], tick: Callable[[], None]) -> list[Walk]:
    script: list[bytes] = []
    arrived = asyncio.Semaphore(0)
    current = asyncio.current_task()
    assert current is not None
    others = {current}

    async def answer(peer: Peer) -> None:
        task = asyncio.current_task()
        assert task is not None
        others.add(task)  # it serves the connection as long as that is open
        await peer.send(HEAD)
        for data in script:
            tick()
            await peer.send(chunked(data))
            await arrived.acquire()
        tick()
        await peer.send(chunked(DONE) + END)  # [DONE] reaches the client when the answer is complete
        await arrived.acquire()

    async with raw_upstream(answer) as upstream:
        app = Quart(__name__)
        QuartOpenAISSE(
            app, auth=bearer_tokens({TOKEN: "ann"}), base_url=upstream.base_url, api_key="sk-any", own_transport=True
        )
        await app.startup()
        # The event loop's own timers stand still with the clock.
        limit = threading.Timer(PATIENCE, asyncio.get_running_loop().call_soon_threadsafe, [current.cancel])
        limit.start()
        found = []
        for number in (EVENTS, EVENTS, *numbers):  # the first two open the connection, and do what is done once
            script[:] = [*[TEXT] * number, FINISH]
            found.append(await _walk(app, arrived, others))
        limit.cancel()
        await app.shutdown()
    return found[2:]


async def _walk(app: Quart, arrived: asyncio.Semaphore, others: set[asyncio.Task[Any]]) -> Walk:
    """One request, until no task runs any longer but *others*."""
    body = json.dumps({"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "How far?"}]})
    requests = [{"type": "http.request", "body": body.encode(), "more_body": False}]

    sent = asyncio.Event()

    async def receive() -> Any:
        if requests:
            return requests.pop()
        await sent.wait()
        return {"type": "http.disconnect"}  # as servers say it after a response, too

    async def send(message: Any) -> None:
        if message.get("body"):
            arrived.release()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            sent.set()

    with _recorded() as calls:
        await app(_scope(len(body)), receive, send)
        while started := asyncio.all_tasks() - others:
            await asyncio.wait(started)
        for _ in range(10):  # what their ends have scheduled
            await asyncio.sleep(0)
    return Walk(calls)


def _scope(length: int) -> Any:
    path = "/v1/chat/completions"
    headers = {
        "host": "127.0.0.1:5000",
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "content-length": str(length),
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 5000),
    }


@contextmanager
def _recorded() -> Iterator[list[Function]]:
    """The functions of the package that are called within it, in their order."""
    calls: list[Function] = []
    known: dict[CodeType, Function | None] = {}

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in known:
                known[code] = _function(code)
            if (function := known[code]) is not None:
                calls.append(function)

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # it would close generators in the middle of something else
    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        gc.enable()


def _function(code: CodeType) -> Function | None:
    """What *code* is of the package; `None`: nothing that counts."""
    path = Path(code.co_filename)
    if code.co_name in INLINE or not path.is_relative_to(PACKAGE):
        return None
    return Function(path.relative_to(PACKAGE).as_posix(), code.co_qualname)


@contextmanager
def _clock() -> Iterator[Callable[[], None]]:
    """In place of `time.monotonic` a clock that advances by what it gives, and by that only."""
    real, now = time.monotonic, time.monotonic()

    def clock() -> float:
        return now

    def tick() -> None:
        nonlocal now
        now += 1 / 1024  # no rounding: all gaps are the same

    modules = [module for name, module in sys.modules.items() if name.startswith(PACKAGE.name)]
    places = [(each, name) for each in (time, *modules) for name, value in vars(each).items() if value is real]
    for place in places:
        setattr(*place, clock)
    try:
        yield tick
    finally:
        for place in places:
            setattr(*place, real)


@contextmanager
def _log_lines() -> Iterator[None]:
    """The package's log lines are written, at INFO, and are lost."""
    logger, handler = logging.getLogger(PACKAGE.name), logging.StreamHandler(io.StringIO())
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


# The command ------------------------------------------------------------------------------------------------------


def summary(stream: Counts, event: Counts, *, events: int = EVENTS) -> str:
    """The table, for a stream of so many *events*."""
    rows = [
        ("", "functions", "calls", "files", "rooms", "room changes"),
        (f"per stream of {events} event{'s' if events > 1 else ''}", *map(str, astuple(stream))),
        ("per further event", *map(str, astuple(event))),
    ]
    return "\n".join(aligned(rows)) + "\n"


def listing(calls: Mapping[Function, int], more: Mapping[Function, int]) -> str:
    """The functions in the order of first calls, file by file: calls in the stream, and in a further event."""
    files: dict[str, list[Function]] = {}
    for function in calls:
        files.setdefault(function.file, []).append(function)
    lines = []
    for file, functions in files.items():
        lines.append(f"{PACKAGE.name}/{file}")
        for each in functions:
            event = f"+{more[each]}" if each in more else ""
            lines.append(f"{calls[each]:6} {event:>3}  {each.name}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Reads the command line, and prints the counts."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.walk",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="the functions, in the order of first calls, file by file")
    parser.add_argument(
        "--events",
        type=int,
        default=EVENTS,
        metavar="N",
        help=f"chunks of text in the stream, 1 or more (default: {EVENTS})",
    )
    options = parser.parse_args()
    if options.events < 1:
        parser.error("--events must be 1 or more")
    try:
        stream, longer = walks(options.events, options.events + FURTHER)
        more, event = further(stream, longer, FURTHER)
    except Failed as error:
        sys.stderr.write(f"It can't be counted: {error}\n")
        return 2
    sys.stdout.write(f"One plain streamed request, on Python {platform.python_version()}\n")
    sys.stdout.write(summary(stream.counts(), event, events=options.events))
    if options.list:
        sys.stdout.write("\n" + listing(stream.calls, more))
    return 0


if __name__ == "__main__":
    sys.exit(main())
