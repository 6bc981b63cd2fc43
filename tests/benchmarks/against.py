"""The build of another commit, which `--against` measures beside that of this checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.servers import Build, Server
from tests.matrix.environments import ROOT, Failed, create, run
from tests.matrix.processes import communicate

PACKAGE = "quart_openai_sse"
SHARED = ("hypercorn", "uvicorn", "granian", "uvloop")
"""Servers: they are part of the measurement, so both builds run on the same versions."""

_VERSIONS = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
_PACKAGE_FILE = f"import {PACKAGE}; print({PACKAGE}.__file__)"


async def resolve(name: str, checkout: Path = ROOT) -> str:
    """The hash of the commit *name*, if this checkout can be compared with it. Raises `Failed`, which says why not."""
    if not shutil.which("git"):
        raise Failed("--against needs git, which is not found")
    code, top, errors = await _git(checkout, "rev-parse", "--show-toplevel")
    if code or Path(top) != checkout.resolve():
        raise Failed(f"--against needs a git checkout, and {checkout} is not the root of one. {errors}".strip())
    code, commit, _ = await _git(checkout, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if code:
        raise Failed(f"there is no commit {name!r} in this checkout")
    _, changed, _ = await _git(checkout, "status", "--porcelain", "--", PACKAGE, "pyproject.toml")
    if changed:
        files = ", ".join(line[2:].strip() for line in changed.splitlines())
        raise Failed(f"there are changes that are not committed: {files}. Commit or stash them, then compare commits")
    return commit


async def short(commit: str, checkout: Path = ROOT) -> str:
    """The commit's hash, abbreviated."""
    _, found, _ = await _git(checkout, "rev-parse", "--short", commit)
    return found


@asynccontextmanager
async def worktree(commit: str, folder: Path, checkout: Path = ROOT) -> AsyncIterator[Path]:
    """A worktree of *commit* in *folder*. It is removed when the block is left, also by an error or a signal."""
    tree = folder / "tree"
    try:
        code, _, errors = await _git(checkout, "worktree", "add", "--detach", str(tree), commit)
        if code:
            raise Failed(f"git made no worktree of {commit}: {errors}")
        yield tree
    finally:  # forced twice: git locks a worktree while it makes it
        await _git(checkout, "worktree", "remove", "--force", "--force", str(tree))


@asynccontextmanager
async def build_of(
    commit: str, packages: Iterable[str], folder: Path, *, python: Path, checkout: Path = ROOT
) -> AsyncIterator[Build]:
    """The build of *commit* in an environment of its own in *folder*, with *packages* beside it.

    The dependencies have the versions that the commit pins; the servers, and what it does not pin, have those that
    *python* has. Raises `Failed` if the commit does not install.
    """
    label = await short(commit, checkout)
    installed = await _versions(python)
    async with worktree(commit, folder, checkout) as tree:
        environment, pins = folder / "environment", tree / ".ci" / "constraints.txt"
        await create(environment, sys.executable)
        constraints = folder / "constraints.txt"
        constraints.write_text(merged(pins.read_text("utf-8") if pins.exists() else "", installed), "utf-8")
        own = environment / "bin" / "python"
        try:
            # pip that is killed leaves its temporary folders, and this checkout's pins are not that commit's.
            pip = ("env", "-u", "PIP_CONSTRAINT", "-u", "PIP_BUILD_CONSTRAINT", f"TMPDIR={folder}", own, "-m", "pip")
            await run(*pip, "install", "-c", constraints, tree, *packages)
            file = await _ask(own, _PACKAGE_FILE)
        except Failed as failed:
            said = [line for line in str(failed).splitlines()[1:] if line.strip()][-6:]  # without the command
            raise Failed("\n  ".join([f"commit {label} does not install:", *said])) from None
        # The programs come from this checkout, and nothing else does: its package must not be found there.
        path = folder / "programs"
        path.mkdir()
        (path / "tests").symlink_to(ROOT / "tests")
        yield Build(label, own, path, Path(file).parent, different(await _versions(own), installed))


def merged(pins: str, installed: Mapping[str, str]) -> str:
    """Constraints: the lines of *pins*, except for `SHARED`, and the versions *installed* of what they do not name."""
    lines, named = [], {_canonical(PACKAGE)}
    for line in pins.splitlines():
        name = re.match(r"[\w.-]*", line)
        if name and name[0] and _canonical(name[0]) not in SHARED:
            named.add(_canonical(name[0]))
            lines.append(line)
    lines += [f"{name}=={version}" for name, version in installed.items() if _canonical(name) not in named]
    return "\n".join(lines) + "\n"


def different(theirs: Mapping[str, str], ours: Mapping[str, str]) -> tuple[str, ...]:
    """What both have in different versions, such as `quart 0.22.0 (here 0.23.1)`."""
    known = {_canonical(name): version for name, version in ours.items()}
    return tuple(
        f"{name} {version} (here {known[_canonical(name)]})"
        for name, version in sorted(theirs.items())
        if known.get(_canonical(name), version) != version and _canonical(name) not in (_canonical(PACKAGE), "pip")
    )


def units(servers: Iterable[Server], build: Build | None) -> list[tuple[Server, ...]]:
    """Each of *servers*; one of this extension together with the same of *build*, if there is one."""
    return [
        (each, replace(each, name=f"{each.name}@{build.label}", build=build)) if build and each.extension else (each,)
        for each in servers
    ]


def turns(units: Sequence[tuple[Server, ...]], number: int) -> list[Server]:
    """The servers of round *number*, from 0 on: the first one is another each time, and the two of a pair swap."""
    first = number % len(units)
    step = -1 if number % 2 else 1
    return [server for unit in [*units[first:], *units[:first]] for server in unit[::step]]


async def _versions(python: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(await _ask(python, _VERSIONS))
    return found


async def _ask(python: Path, code: str) -> str:
    """What *code* prints, alone with the packages of its environment. Raises `Failed`."""
    status, output, errors = await communicate((python, "-I", "-c", code), env=os.environ)
    if status:
        raise Failed(f"{python} failed:\n{errors.strip().splitlines()[-1]}")
    return output.decode().strip()


async def _git(checkout: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of git in *checkout*; a repository that the environment names is ignored."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ("git", "-C", checkout, "-c", "core.hooksPath=/dev/null", *arguments)
    code, output, errors = await communicate(command, env=environ)
    return code, output.decode().rstrip("\n"), " ".join(errors.split())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
