"""What has to be there before anything runs: programs that are built, programs that are found, environments."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.matrix.environments import PINS, ROOT, Failed, create, run, version_of
from tests.matrix.processes import communicate
from tests.matrix.servers import nginx

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quart-openai-sse" / "benchmarks"
"""Where what is built is kept."""

SOURCES = Path(__file__).parent / "programs"
PEERS_FOLDER = Path(__file__).parent / "peers"
GO_PACKAGES = "/usr/share/gocode"  # where Debian's golang-*-dev packages put their sources
LITELLM = "litellm[proxy]==1.106.2"
SERVERS = ("hypercorn", "uvicorn", "granian", "uvloop", "httptools")
PEERS = ("quart", "httpx", "msgspec", *SERVERS, "fastapi", "openai", "redis", "hiredis")
AGNO = ("agno==3.1.10", "fastapi", *SERVERS, "openai", "redis", "hiredis", "sqlalchemy", "python-multipart")


async def go_program(cache: Path, name: str) -> Path:
    """The program of `programs/`*name*, built if it was not yet. Raises `Failed`, which says what is missing."""
    sources = sorted((SOURCES / name).glob("*.go"))
    target = cache / f"{name}-{_key(*(path.read_text('utf-8') for path in sources))}"
    if target.exists():
        return target
    if not (go := shutil.which("go")):
        raise Failed("go is not found: on Debian, apt-get install golang-go golang-github-gin-gonic-gin-dev")
    cache.mkdir(parents=True, exist_ok=True)
    # Packages come from the machine's folder and from nowhere else.
    environ = {**os.environ, "GO111MODULE": "off", "GOPATH": GO_PACKAGES, "GOPROXY": "off", "GOFLAGS": ""}
    built = target.with_suffix(f".{os.getpid()}")
    code, output, errors = await communicate((go, "build", "-o", built, "."), env=environ, cwd=SOURCES / name)
    if code:
        raise Failed(f"go build of {name}: {' '.join((output.decode() + errors).split())[:300]}")
    built.rename(target)
    return target


async def python_with(cache: Path, packages: Sequence[str]) -> Path:
    """A Python that has *packages*: this one, or that of an environment with all that is compared."""
    if all(map(importlib.util.find_spec, packages)):
        return Path(sys.executable)
    pins = PINS.read_text("utf-8") if PINS.exists() else ""
    folder = cache / f"peers-{version_of(sys.executable)}-{_key(pins, *PEERS)}"
    if not (folder / "ready").exists():
        await create(folder, sys.executable)
        pinned = ("-c", PINS) if pins else ()
        await run(folder / "bin" / "pip", "install", *pinned, *PEERS, ROOT)
        (folder / "ready").touch()
    return folder / "bin" / "python"


async def litellm(cache: Path) -> Path:
    """LiteLLM's command, in an environment of its own: it pins much of what others need in other versions."""
    folder = cache / f"litellm-{version_of(sys.executable)}-{_key(LITELLM)}"
    if not (folder / "ready").exists():
        await create(folder, sys.executable)
        await run(folder / "bin" / "pip", "install", LITELLM)
        (folder / "ready").touch()
    return folder / "bin" / "litellm"


async def agno(cache: Path) -> Path:
    """A Python that has Agno, in an environment of its own."""
    pins = PINS.read_text("utf-8") if PINS.exists() else ""
    pinned = [line for line in pins.splitlines() if line.partition("==")[0] in (*SERVERS, "redis", "hiredis")]
    folder = cache / f"agno-{version_of(sys.executable)}-{_key(*pinned, *AGNO)}"
    if not (folder / "ready").exists():
        await create(folder, sys.executable)
        (folder / "pins.txt").write_text("\n".join(pinned), "utf-8")
        await run(folder / "bin" / "pip", "install", "-c", folder / "pins.txt", *AGNO)
        (folder / "ready").touch()
    return folder / "bin" / "python"


async def node_peer(cache: Path, name: str) -> Path:
    """The program of `peers/`*name* in a folder that has the packages of npm: node looks for them beside a file."""
    files = [PEERS_FOLDER / each for each in ("package.json", "package-lock.json", name)]
    folder = cache / f"node-{_key(*(path.read_text('utf-8') for path in files))}"
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copy(path, folder)
        await run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
        (folder / "ready").touch()
    return folder / name


async def program(cache: Path, wanted: str) -> Path:
    """What a server's `program` stands for. Raises `Failed`, which says why there is none."""
    kind, _, name = wanted.rpartition(":")
    if kind == "go":
        return await go_program(cache, name)
    if kind == "pip":
        return await litellm(cache)
    if not nginx():
        raise Failed("nginx is not found: on Debian, apt-get install nginx")
    return Path(nginx())


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
