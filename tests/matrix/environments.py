"""The environments of servers and clients, built once in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.matrix.plan import Client, Environment
from tests.matrix.processes import communicate

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
PINS = ROOT / ".ci" / "constraints.txt"
SERVER_PACKAGES = ("hypercorn", "uvicorn", "uvicorn-worker", "gunicorn", "granian", "uvloop", "httptools")


class Failed(Exception):
    """A command that an environment needs has failed."""


def version_of(python: str) -> str:
    """The version of an interpreter: `3.13`."""
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


async def server_environment(cache: Path, environment: Environment, python: str) -> Path:
    """A virtual environment with this checkout, the servers and one Quart, all pinned."""
    pins = "\n".join(line for line in PINS.read_text("utf-8").splitlines() if not line.lower().startswith("quart=="))
    pins += f"\n{quart_pin(PINS.read_text('utf-8'), environment.quart)}\n"
    key = _key(f"server {environment}", pins, (ROOT / "pyproject.toml").read_text("utf-8"), str(ROOT))
    folder = cache / f"server-{environment.python}-quart-{environment.quart}-{key}"
    if not (folder / "ready").exists():
        await create(folder, python)
        (folder / "pins.txt").write_text(pins, "utf-8")
        wanted = ("-e", f"{ROOT}[flask,httpx2]", *SERVER_PACKAGES)
        await run(folder / "bin" / "pip", "install", "-c", folder / "pins.txt", *wanted)
        (folder / "ready").touch()
    return folder


def quart_pin(pins: str, series: str) -> str:
    """The pin of Quart that is of this series, whatever Python it is meant for."""
    found = re.search(rf"^quart==({re.escape(series)}\.\d+)", pins, re.M | re.I)
    if found is None:
        raise Failed(f"{PINS.name} pins no Quart {series}")
    return f"quart=={found[1]}"


async def client_command(cache: Path, client: Client, python: str) -> list[str]:
    """The command that starts *client*, in an environment of its own if it needs one."""
    interpreter, file, *arguments = client.command
    if file == "chromium_client.py":
        arguments.append(",".join(client.checks))
    if interpreter == "node":
        return ["node", str(await _node_modules(cache) / file), *arguments]
    if not client.requirements:
        return [sys.executable, str(CLIENTS / file), *arguments]
    return [str(await _client_environment(cache, client, python) / "bin" / "python"), str(CLIENTS / file), *arguments]


async def _client_environment(cache: Path, client: Client, python: str) -> Path:
    requirements = CLIENTS / client.requirements
    key = _key(version_of(python), requirements.read_text("utf-8"))
    folder = cache / f"{requirements.stem}-{key}"
    if not (folder / "ready").exists():
        await create(folder, python)
        await run(folder / "bin" / "pip", "install", "--require-hashes", "-r", requirements)
        (folder / "ready").touch()
    return folder


async def _node_modules(cache: Path) -> Path:
    """A folder with the packages of npm, and the clients beside them: node looks for packages beside a file."""
    manifests = [CLIENTS / name for name in ("package.json", "package-lock.json")]
    folder = cache / f"node-{_key(*(path.read_text('utf-8') for path in manifests))}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*manifests, *CLIENTS.glob("*.mjs")]:
        shutil.copy(path, folder)
    if not (folder / "ready").exists():
        await run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
        (folder / "ready").touch()
    return folder


async def create(folder: Path, python: str) -> None:
    """An empty virtual environment in *folder*, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    await run(python, "-m", "venv", folder)


async def run(*command: object, cwd: Path | None = None) -> None:
    """Runs *command*; raises `Failed` with what it said."""
    # Pins for one environment are wrong for another.
    environ = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    code, output, errors = await communicate(command, env=environ, cwd=cwd)
    if code:
        said = output.decode(errors="replace") + errors
        raise Failed(f"{' '.join(map(str, command))} failed:\n{said[-2000:]}")


def _key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


async def versions(folder: Path) -> dict[str, str]:
    """What is installed in a server's environment, of the things that matter here."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    names = ("quart", "httpx", "httpx2", *SERVER_PACKAGES)
    _, output, _ = await communicate([folder / "bin" / "python", "-c", code, *names], env=os.environ)
    return dict(json.loads(output))
