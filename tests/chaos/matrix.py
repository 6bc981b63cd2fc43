"""The matrix: every fault in every window, what came of it, and whether that is as it should be."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from quart_openai_sse.observers import StreamRecord
from quart_openai_sse.testing import read
from tests.chaos.app import RETRY_WAITS, ChaosApp, chaos_app, until
from tests.chaos.faults import FAULTS, Cell, Expected, cells
from tests.chaos.wire import TEXT, Window
from tests.conftest import ANN, QUESTION

DEADLINE = 0.4
"""Seconds of the one deadline that a cell is about; the others are long."""
EXCESS = 1.0
"""Seconds by which nothing may outlast its deadline."""
DEADLINES = ("connect_timeout", "first_output_timeout", "gap_timeout", "total_timeout")


@dataclass
class Seen:
    """What came of one request."""

    status: int
    code: str
    outcome: str
    """Of the stream, as its client saw it: `completed` for an answer in one piece."""
    text: str
    said_done: bool
    record: StreamRecord
    excess: float
    """Seconds by which it outlasted its deadlines."""
    closed: str
    """Milliseconds from the fault until we closed its connection upstream, or who closed it else."""
    busy: int
    """Requests that the upstream still answers."""
    wrong: list[str] = field(default_factory=list)
    """What is not as it should be."""

    @property
    def client(self) -> str:
        if not self.code:
            return f"{self.status} {self.outcome}"
        return f"200, event {self.code}" if self.status == 200 else f"{self.status} {self.code}"


def deadline(expected: Expected) -> float:
    """Seconds after which a cell should be over, if nothing took any time."""
    each = DEADLINE if expected.code in DEADLINES else 0.0
    return expected.attempts * each + (RETRY_WAITS if expected.attempts > 1 else 0)


def options_for(expected: Expected) -> dict[str, float]:
    return {expected.code: DEADLINE} if expected.code in DEADLINES else {}


async def ask(client: httpx.AsyncClient, app: ChaosApp, cell: Cell, *, path: str = "/chat/completions") -> Seen:
    """Asks for what a cell is about, and looks at what comes of it."""
    number = sum(event.kind == "ended" for event in app.events) + 1
    body = {"model": cell.model, "messages": QUESTION, "stream": cell.window.stream, "n": cell.fault.n}
    began = time.monotonic()
    response = await client.post(app.base_url + path, json=body, headers={**ANN, "Accept": "text/event-stream"})
    took = time.monotonic() - began
    record = await app.record("ended", number)
    await until(lambda: not app.upstream.busy, patience=5)
    seen = await _seen(response, record)
    seen.excess = max(0.0, took - deadline(cell.expected))
    seen.busy = app.upstream.busy
    seen.closed = _closed(app, began + deadline(cell.expected))
    return seen


async def _seen(response: httpx.Response, record: StreamRecord) -> Seen:
    said_done = b"[DONE]" in response.content
    if response.headers["content-type"].startswith("text/event-stream"):
        stream = await read(response.content)
        code = (stream.error or {}).get("code") or ""
        return Seen(response.status_code, code, stream.outcome, stream.text, said_done, record, 0, "", 0)
    answer = response.json()
    if "error" in answer:
        return Seen(response.status_code, answer["error"]["code"], "failed", "", said_done, record, 0, "", 0)
    text = answer["choices"][0]["message"]["content"]
    return Seen(response.status_code, "", "completed", text, said_done, record, 0, "", 0)


def _closed(app: ChaosApp, due: float) -> str:
    if not app.upstream.exchanges:
        return "none made"
    last = app.upstream.exchanges[-1]
    if (peer := last.peer).left is None:
        return "by itself" if not last.whole else "kept" if app.upstream.server.open else "at its end"
    return f"{max(0.0, peer.left - max(due, peer.waited or 0.0)) * 1000:.0f} ms"


def judge(seen: Seen, expected: Expected, *, text: str = TEXT) -> list[str]:
    """What is wrong with it."""
    checks = {
        f"status {seen.status} and not {expected.status}": seen.status != expected.status,
        f"code {seen.code!r} and not {expected.code!r}": seen.code != expected.code,
        f"{seen.record.attempts} attempts and not {expected.attempts}": seen.record.attempts != expected.attempts,
        f"{seen.busy} requests go on upstream": seen.busy > 0,
        f"the record says {seen.record.outcome} ({seen.record.reason})": seen.record.reason != expected.code,
        f"it ended {seen.excess:.2f} s after its deadline": seen.excess > EXCESS,
    }
    if expected.code:
        checks["a broken stream looks complete"] = "completed" in (seen.outcome, seen.record.outcome) or seen.said_done
        checks[f"its end is {seen.outcome}"] = (seen.outcome, seen.record.outcome) != ("failed", "failed")
    else:
        checks[f"not complete, but {seen.outcome}"] = (seen.outcome, seen.record.outcome) != ("completed", "completed")
        checks[f"the text is {seen.text!r}"] = seen.text != text
    return [what for what, is_so in checks.items() if is_so]


# Print --------------------------------------------------------------------------------------------------------------

LINE = "{:38} {:19} {:34} {:>8} {:>10}   {:34} {}"


async def run(write: Callable[[str], object]) -> bool:
    """Prints the matrix; whether all of it is as it should be."""
    write(LINE.format("fault", "window", "client saw", "attempts", "closed", "record", "") + "\n")
    results: Counter[bool] = Counter()
    worst = 0.0, "nothing"
    possible = {(cell.name, cell.window): cell for cell in cells()}
    async with httpx.AsyncClient(timeout=60) as client:
        for name, fault in FAULTS.items():
            for window in Window:
                if (cell := possible.get((name, window))) is None:
                    write(LINE.format(name, window.value, f"- {fault.expected(window)}", "-", "-", "-", "") + "\n")
                    continue
                seen = await _one(client, cell)
                results[not seen.wrong] += 1
                worst = max(worst, (seen.excess, f"{name}, {window.value}"))
                write(_line(cell, seen) + "\n")
    write(f"\nworst excess over a deadline: {worst[0]:.3f} s ({worst[1]})\n")
    write(f"{results[True]} passed, {results[False]} failed\n")
    return not results[False]


async def _one(client: httpx.AsyncClient, cell: Cell) -> Seen:
    async with chaos_app(**options_for(cell.expected)) as app, asyncio.timeout(60):
        seen = await ask(client, app, cell)
    seen.wrong = judge(seen, cell.expected)
    return seen


def _line(cell: Cell, seen: Seen) -> str:
    record = f"{seen.record.outcome} {seen.record.reason}".strip()
    verdict = "ok" if not seen.wrong else "WRONG: " + "; ".join(seen.wrong)
    columns = (cell.name, cell.window.value, seen.client, seen.record.attempts, seen.closed, record, verdict)
    return LINE.format(*map(str, columns))
