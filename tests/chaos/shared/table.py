"""The table of faults: what each reader, start and stop saw, and whether that is as it must be."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.chaos.shared.beginnings import BEGINNINGS, begun
from tests.chaos.shared.redis_faults import REDIS
from tests.chaos.shared.scene import SLACK, Fault, Scene, played
from tests.chaos.shared.site import LEASE
from tests.chaos.shared.sqlite_faults import SQLITE
from tests.chaos.shared.starts import UNUSABLE, refused

FAULTS: Mapping[str, Fault] = {**REDIS, **SQLITE}


async def play(name: str, *, slack: float = SLACK) -> Scene:
    """One of the faults."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return await played(FAULTS[name], Path(folder), slack=slack)


async def run(write: Callable[[str], object], *, only: str = "") -> bool:
    """Prints the table; whether everything was as it must be."""
    write(f"Two workers on one store, with a lease of {LEASE:g} s instead of 15.\n")
    failed = 0
    rows = [name for name in (*FAULTS, *BEGINNINGS, *UNUSABLE) if only in name]
    for name in rows:
        began = time.monotonic()
        seen, wrong = await _row(name)
        failed += bool(wrong)
        write(f"\n{name}   ({time.monotonic() - began:.0f} s)\n")
        for column, cell in seen.items():
            write(f"    {column:36}{cell}\n")
        for line in wrong:
            write(f"    WRONG  {line}\n")
    write(f"\n{len(rows) - failed} passed, {failed} failed\n")
    return not failed


async def _row(name: str) -> tuple[Mapping[str, str], Sequence[str]]:
    """What was seen, by columns, and what is wrong with it."""
    if name in FAULTS:
        scene = await play(name)
        return {column: _counted(seen) for column, seen in scene.seen.items()}, scene.wrong
    if name in BEGINNINGS:
        seen, wrong = await begun(name)
        return {"seen": seen}, wrong
    said, wrong = await refused(name)
    return {"not started": said}, wrong


def _counted(seen: Sequence[str]) -> str:
    """What was seen, equal ones once: `3 x 201 in 0.0 s`."""
    return "; ".join(f"{count} x {what}" if count > 1 else what for what, count in Counter(seen).items())
