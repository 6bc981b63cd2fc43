"""The servers that are compared: how each is started, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
PACKAGES = ("quart", "httpx")
PEERS = "tests.benchmarks.peers"


@dataclass(frozen=True)
class Build:
    """This extension as another commit has it, installed."""

    label: str
    """The commit's hash, abbreviated."""
    python: Path
    path: Path
    """`PYTHONPATH` of its servers."""
    package: Path
    """The folder that `quart_openai_sse` must be imported from."""
    different: tuple[str, ...] = ()
    """The dependencies whose versions are not those of this checkout's environment."""


@dataclass(frozen=True)
class Server:
    """One row of the tables. In *command*, `{python}`, `{program}`, `{port}` and `{folder}` are replaced."""

    name: str
    about: str
    group: Literal["reference", "ours", "peers", "floor", "features"]
    command: tuple[str, ...] = ()
    """Empty: there is no server, the clients ask the API itself."""
    packages: tuple[str, ...] = ()
    """What its Python environment has."""
    program: str = ""
    """What is built (`go:…`), found on the machine, or installed in an environment of its own (`pip:…`)."""
    files: tuple[tuple[str, str], ...] = ()
    """Written to its folder first, from `peers/`: the names there and here."""
    environ: tuple[tuple[str, str], ...] = ()
    kinds: frozenset[str] = frozenset({"lockstep", "bulk", "short", "paced", "vanish"})
    task: dict[str, object] = field(default_factory=dict)
    """What differs in what the load is asked."""
    beside: str = ""
    """The bare server whose memory is taken from its own."""
    bare: bool = False
    """Whether it makes its events itself."""
    build: Build | None = None
    """The build of this extension that it runs; `None`: that of this checkout."""

    @property
    def extension(self) -> bool:
        """Whether it runs this extension."""
        return self.group in ("ours", "features")


_HYPERCORN = ("{python}", "-m", "hypercorn", "--bind", "127.0.0.1:{port}")
_UVICORN = ("{python}", "-m", "uvicorn", "--workers", "1", "--port", "{port}")
_GRANIAN = ("{python}", "-m", "granian", "--interface", "asgi", "--workers", "1", "--port", "{port}")
_ON = {
    "hypercorn": (_HYPERCORN, ("hypercorn",)),
    "hypercorn-uvloop": ((*_HYPERCORN, "--worker-class", "uvloop"), ("hypercorn", "uvloop")),
    "uvicorn": (_UVICORN, ("uvicorn", "uvloop", "httptools")),
    "granian": (_GRANIAN, ("granian", "uvloop")),
}


def _ours(server: str, feature: str = "", about: str = "", **options: object) -> Server:
    command, packages = _ON[server]
    return Server(
        f"ours-{server}" + (f"+{feature}" if feature else ""),
        about or f"this extension on {server.replace('-', ' and ')}, everything on that is on by default",
        "features" if feature else "ours",
        (*command, f"{PEERS}.ours:app"),
        (*PACKAGES, "msgspec", *packages),
        environ=(("BENCHMARK_SWITCHES", feature),),
        beside=f"bare-{server}",
        **({"kinds": frozenset({"lockstep", "short"})} if feature else {}) | options,  # type: ignore[arg-type]
    )


def _python(name: str, about: str, app: str, server: str, *packages: str, **options: object) -> Server:
    command, needed = _ON[server]
    group = options.pop("group", "peers")
    return Server(name, about, group, (*command, f"{PEERS}.{app}:app"), (*needed, *packages), **options)  # type: ignore[arg-type]


SERVERS = (
    Server("direct", "no relay: what the measuring itself takes", "reference"),
    Server(
        "nginx",
        "nginx, proxy_buffering off",
        "reference",
        ("{program}", "-p", "{folder}", "-e", "stderr", "-c", "nginx.conf"),
        program="nginx",
        files=(("nginx.conf", "nginx.conf"),),
    ),
    Server("go-proxy", "Go's httputil.ReverseProxy", "reference", ("{program}",), program="go:proxy"),
    Server("gin", "a Go program on Gin that parses every chunk", "reference", ("{program}",), program="go:gin"),
    _ours("uvicorn"),
    _ours("granian"),
    _ours("hypercorn-uvloop"),
    _ours("hypercorn"),
    _python("quart-raw", "Quart on hypercorn, httpx's bytes as they come", "quart_raw", "hypercorn", *PACKAGES),
    _python("quart-httpx", "Quart on hypercorn, httpx's lines, json both ways", "quart_httpx", "hypercorn", *PACKAGES),
    _python("quart-sdk", "Quart on hypercorn, OpenAI's SDK", "quart_sdk", "hypercorn", "quart", "openai"),
    _python("fastapi-sdk", "FastAPI on uvicorn, OpenAI's SDK", "fastapi_sdk", "uvicorn", "fastapi", "openai"),
    Server(
        "litellm",
        "LiteLLM's proxy, with its master key",
        "peers",
        ("{program}", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", "{port}", "--telemetry", "False"),
        program="pip:litellm",
        files=(("litellm.yaml", "litellm.yaml"),),
    ),
    *(
        _python(
            f"bare-{server}",
            f"Quart on {server} that asks nobody",
            "bare",
            server,
            "quart",
            group="floor",
            bare=True,
            kinds=frozenset({"lockstep", "bulk", "short", "paced"}),
        )
        for server in _ON
    ),
    _ours("uvicorn", "no-auth", "… without authentication"),
    _ours("uvicorn", "no-response-log", "… without the middleware that logs responses"),
    _ours("uvicorn", "no-log-lines", "… with logging at WARNING"),
    _ours("uvicorn", "on-end", "… with an on_end hook, for which the message is put together"),
    _ours("uvicorn", "transform", "… with a transform that changes nothing"),
    _ours("uvicorn", "app-model", "… with a model of the app's own that calls the upstream", task={"model": "app"}),
    _ours("uvicorn", "retained", "… with a stream that can be resumed, in the openai format", task={"retained": True}),
    _ours("uvicorn", "second-reader", "… the same with two readers", task={"retained": True, "readers": 2}),
    _ours(
        "uvicorn",
        "text",
        "… a stream that can be resumed, in the text format",
        task={"path": STREAMS, "end": "event: completed"},
    ),
)
QUICK = ("nginx", "gin", "ours-uvicorn", "ours-hypercorn")
"""What `--quick` runs."""


def chosen(names: list[str]) -> list[Server]:
    """The servers of these names or groups, and those that ratios are taken against. Raises `KeyError`."""
    known = {server.name for server in SERVERS} | {server.group for server in SERVERS}
    for name in names:
        if name not in known:
            raise KeyError(name)
    return [each for each in SERVERS if {each.name, each.group} & set(names)]
