"""The same measurement of several builds: each case runs in a process of its own, with the package of one checkout.

A process imports `quart_openai_sse` from the checkout that `--package` names, and `tests` from this one. So a case uses
only what all builds have in common, and `known` leaves out the options that a build does not have.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from quart_openai_sse.config import Config

ROOT = Path(__file__).resolve().parents[2]
"""This checkout."""

Figures = dict[str, Any]
"""What one case measured in one build: texts and numbers by the names of their columns."""
Case = Callable[[], Coroutine[Any, Any, Figures]]


@dataclass(frozen=True)
class Build:
    """A checkout, staged so that its package can be imported beside the tests of this one."""

    name: str
    folder: Path
    """Contains the package of that checkout, the tests of this one, and nothing else."""


@contextmanager
def staged(checkouts: Sequence[Path]) -> Iterator[list[Build]]:
    """The builds of *checkouts*, or of this checkout if there are none."""
    with tempfile.TemporaryDirectory() as temporary:
        builds = []
        for number, checkout in enumerate(checkouts or [ROOT]):
            package = checkout.resolve() / "quart_openai_sse"
            if not (package / "__init__.py").is_file():
                raise SystemExit(f"{checkout} is not a checkout: it has no package quart_openai_sse.")
            folder = Path(temporary, str(number))
            folder.mkdir()
            (folder / package.name).symlink_to(package)
            (folder / "tests").symlink_to(ROOT / "tests")
            builds.append(Build(package.parent.name, folder))
        yield builds


async def measure(
    module: str,
    cases: Sequence[str],
    build: Build,
    *,
    at_once: int = 1,
    patience: float = 60,
    python: Path | str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Figures]:
    """The figures of the *cases* of a module of this folder, each in a process that has *patience* seconds."""
    turns = asyncio.Semaphore(at_once)

    async def one(case: str) -> Figures:
        async with turns:
            return await _run(
                [str(python), "-m", "tests.chaos.builds", module, case], build, patience, environment or {}
            )

    return dict(zip(cases, await asyncio.gather(*map(one, cases)), strict=True))


async def _run(command: Sequence[str], build: Build, patience: float, environment: Mapping[str, str]) -> Figures:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=build.folder,  # which `-m` puts in front of the path
        env={**_environment(), "PYTHONPYCACHEPREFIX": str(build.folder / "cache"), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), patience)
    except TimeoutError:
        return {"error": f"not over in {patience:g} s"}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = out.decode().splitlines()
    if process.returncode or not lines:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        return {"error": " ".join(last)[:120] or f"exit code {process.returncode}"}
    figures: Figures = json.loads(lines[-1])
    return figures


def _environment() -> dict[str, str]:
    """Without keys and addresses of the machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHONPATH"))}


def known(**options: Any) -> dict[str, Any]:
    """Those of *options* that this build has."""
    names = {each.name for each in fields(Config)}
    return {name: value for name, value in options.items() if name in names}


# Table --------------------------------------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], figures: Sequence[tuple[str, Mapping[str, Figures]]]) -> Iterator[str]:
    """Lines: a row for each case, a group of *columns* for each build. *figures* are the builds' names and results."""
    cases = list(figures[0][1])
    groups = [[_cells(columns, found[case]) for case in cases] for _, found in figures]
    first = max(len(title), *map(len, cases))
    heads, rows = [f"{'':{first}}"], [[f"{title:{first}}"], *([f"{case:{first}}"] for case in cases)]
    for (name, _), group in zip(figures, groups, strict=True):
        widths = [max(map(len, column)) for column in zip(columns, *group, strict=True)]
        heads.append(f"{name:{sum(widths) + 2 * (len(widths) - 1)}}")
        for row, cells in zip(rows, (columns, *group), strict=True):
            row += [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    yield "  ".join(heads).rstrip()
    yield from ("  ".join(row).rstrip() for row in rows)


def _cells(columns: Sequence[str], figures: Figures) -> list[str]:
    if "error" in figures:
        return [f"({figures['error']})", *[""] * (len(columns) - 1)]
    return [_cell(figures.get(column)) for column in columns]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# The process of a case ----------------------------------------------------------------------------------------------


def main(module: str, case: str) -> None:
    """Runs one case and prints its figures; then the process ends, whatever still hangs in it."""
    import logging

    logging.disable(logging.CRITICAL)  # the table says it
    run: Mapping[str, Case] = import_module(f"tests.chaos.{module}").CASES
    print(json.dumps(asyncio.run(run[case]())), flush=True)  # noqa: T201
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
