"""Every status with every form of `Retry-After`: how often it was asked, and what the caller was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos import load
from tests.chaos.app import RETRY_WAITS, ChaosApp, chaos_app
from tests.chaos.faults import ATTEMPTS
from tests.chaos.matrix import EXCESS
from tests.chaos.statuses import FORMS, STATUSES, answered, asked_again

WAITS = {"1 s": 2.0, "a date": 2.0}
"""Seconds that all attempts may wait for, where it is more than our own delays."""


class Refusal(NamedTuple):
    """What came of one request."""

    attempts: int
    excess: float
    wrong: list[str]


async def refused(app: ChaosApp, status: int, form: str) -> Refusal:
    """Asks an upstream that refuses so."""
    began = time.monotonic()
    answer = await load.ask(app.address, model := f"status {status} {form}")
    excess = time.monotonic() - began - WAITS.get(form, RETRY_WAITS)
    [record] = [each.record for each in app.events if each.kind == "ended" and each.record.model == model]
    checks = {
        f"answered {answer.status} {answer.outcome}": (answer.status, answer.outcome) != answered(status),
        f"{record.attempts} attempts": record.attempts != (ATTEMPTS if asked_again(status, form) else 1),
        f"the record says {record.outcome} {record.status}": (record.outcome, record.status)
        != ("failed", answered(status)[0]),
    }
    return Refusal(record.attempts, max(0.0, excess), [what for what, is_so in checks.items() if is_so])


async def row(app: ChaosApp, status: int) -> dict[str, Refusal]:
    """One status in every form."""
    return dict(zip(FORMS, await asyncio.gather(*(refused(app, status, form) for form in FORMS)), strict=True))


async def run(write: Callable[[str], object]) -> bool:
    """Prints the attempts by status and form; whether all of it is as it should be."""
    write("attempts, by the upstream's status (and what the caller gets) and its Retry-After\n\n")
    write(f"{'':12}" + "".join(f"{form:>12}" for form in FORMS) + "\n")
    wrong: list[str] = []
    worst = 0.0, ""
    async with chaos_app() as app:
        for status in STATUSES:
            seen = await row(app, status)
            write(f"{status:4} -> {answered(status)[0]:<4}" + "".join(f"{x.attempts:12}" for x in seen.values()) + "\n")
            wrong += [f"{status}, {form}: {what}" for form, each in seen.items() for what in each.wrong]
            worst = max(worst, *((each.excess, f"{status}, {form}") for form, each in seen.items()))
    wrong += [f"{worst[1]}: {worst[0]:.2f} s too late"] if worst[0] > EXCESS else []
    write("".join(f"WRONG {what}\n" for what in wrong))
    write(f"\nworst excess over the waits: {worst[0]:.3f} s ({worst[1]})\n")
    write(f"{len(STATUSES) * len(FORMS) - len(wrong)} passed, {len(wrong)} failed\n")
    return not wrong
