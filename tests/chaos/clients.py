"""The table of clients that misbehave: what each does, and what becomes of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from quart_openai_sse.observers import StreamRecord
from tests.chaos import visitors as v
from tests.chaos.app import ChaosApp, chaos_app, until
from tests.chaos.upstream import UNCONNECTED
from tests.chaos.visitors import Habit, Visitor

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
LEFT, WHOLE, TOO_LONG, NOTHING = "stopped client_left", "completed", "failed total_timeout", "no stream"


class Client(NamedTuple):
    """What a client asks for and does, and what its record is to say."""

    model: str
    does: Habit
    record: str = LEFT
    stream: bool = True
    route: str = CHAT
    streams: int = 1
    """How many it starts."""
    options: Mapping[str, Any] = {}


ENDLESS = "an endless stream @ MIDDLE"
SHORT = {"total_timeout": 1.5}

CLIENTS = {
    "leaves while the upstream is connected to": Client(UNCONNECTED[1], v.leaves(v.started)),
    "leaves before the upstream's headers": Client("stalls @ BEFORE", v.leaves(v.asked)),
    "leaves before the first token": Client("stalls @ PREAMBLE", v.leaves(v.asked)),
    "leaves while another attempt is waited for": Client("status 503 1 s", v.leaves(v.retried)),
    "leaves after a late 200": Client(
        "stalls @ PREAMBLE", v.leaves(v.committed), options={"commit_after": 0.05, "keepalive": 0.05}
    ),
    "leaves mid-stream": Client(ENDLESS, v.leaves(v.output)),
    "leaves in a stream without a pause": Client("flood", v.leaves(v.output)),
    "leaves while stalled by back-pressure": Client("flood", v.leaves(v.backed_up)),
    "leaves an answer in one piece": Client("stalls @ ONE_PIECE", v.leaves(v.asked), stream=False),
    "leaves /streams, with no linger": Client(ENDLESS, v.leaves(v.output), route=STREAMS),
    "leaves an app's model": Client("agent", v.leaves(v.output)),
    "leaves an app's model before it says anything": Client("silent agent", v.leaves(v.asked)),
    "leaves an app's model, in one piece": Client("silent agent", v.leaves(v.asked), stream=False),
    "half-closes": Client(ENDLESS, v.half_closes),
    "reads nothing": Client("flood", v.reads_nothing, TOO_LONG, options=SHORT),
    "reads a byte now and then": Client("flood", v.reads_by_the_byte, TOO_LONG, options=SHORT),
    "pipelines a second request": Client("sound", v.pipelines, WHOLE, streams=2),
    "pipelines a second request, and leaves": Client(ENDLESS, v.pipelines_and_leaves, LEFT),
    "sends its request slowly": Client("sound", v.asks_slowly, WHOLE),
    "stops within its body": Client("sound", v.stops_within_its_body, NOTHING, options={"body_timeout": 0.3}),
    "leaves within its body": Client("sound", v.leaves_within_its_body, NOTHING),
}


class Visit(NamedTuple):
    """What came of a client's visit."""

    records: list[StreamRecord]
    requests: int
    """How many reached the upstream."""
    closed: float | None
    """Seconds from its leaving until the upstream saw it; `None` if it saw nothing of it."""
    wrong: list[str]


async def visit(client: Client, *, patience: float) -> Visit:
    """Lets a client do what it does. *patience*: how many seconds after its end something may go on."""
    async with chaos_app(**client.options) as app, asyncio.timeout(55):
        visitor = await Visitor.come(app, client.model, stream=client.stream, route=client.route)
        try:
            await client.does(visitor)
            ends = client.streams if client.record != NOTHING else 0
            records = [await app.record("ended", number) for number in range(1, ends + 1)]
        finally:
            visitor.writer.transport.abort()  # its unread answer is kept as long as it stays
        over = await until(lambda: not app.upstream.busy and not app.leftovers(), patience=patience)
        wrong = [] if over else [f"still there: {app.leftovers()}, {app.upstream.busy} requests upstream"]
        found = {f"{record.outcome} {record.reason}".strip() for record in records}
        wrong += [f"the record says {each}" for each in found - {client.record}]
        if len(app.events) and not records:
            wrong.append("a stream was started")
        return Visit(records, len(app.upstream.exchanges), _closed(app, visitor), wrong)


def _closed(app: ChaosApp, visitor: Visitor) -> float | None:
    lefts = [exchange.peer.left for exchange in app.upstream.exchanges if exchange.peer.left is not None]
    return max(0.0, lefts[-1] - visitor.left) if lefts and visitor.left is not None else None


# Print --------------------------------------------------------------------------------------------------------------

LINE = "{:46} {:>9} {:>16}   {:28} {}"


async def run(write: Callable[[str], object]) -> bool:
    """Prints the table; whether all of it is as it should be."""
    write(LINE.format("client", "upstream", "upstream closed", "record", "") + "\n")
    failed = 0
    for name, client in CLIENTS.items():
        seen = await visit(client, patience=1)
        failed += bool(seen.wrong)
        closed = "-" if seen.closed is None else f"after {seen.closed * 1000:.1f} ms"
        verdict = "ok" if not seen.wrong else "WRONG: " + "; ".join(seen.wrong)
        write(LINE.format(name, f"{seen.requests} asked", closed, client.record, verdict) + "\n")
    write(f"\n{len(CLIENTS) - failed} passed, {failed} failed\n")
    return not failed
