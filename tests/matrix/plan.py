"""What is run against what: the servers, the clients, their checks, and what is known not to work."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

CHECKS = {
    "text": "the streamed text is the answer, to the letter",
    "live": "the first two deltas arrive while the upstream still holds back what follows each",
    "usage": "usage that was asked for is given, once",
    "whole": "an answer in one piece",
    "tool": "a tool call, put together from its parts",
    "auth": "a wrong token is the client's own authentication error",
    "model": "an unknown model is the client's own not-found error",
    "cut": "a stream that breaks off half-way is an error, and never looks complete",
    "leave": "a client that leaves half-way ends the request upstream",
    "resume": "resumed in the middle, nothing is lost and nothing comes twice",
    "end": "who has the end is answered 204, which ends an EventSource",
    "stop": "DELETE ends the stream for its reader, and the request upstream",
    "upgrade": "a request that offers HTTP/2 by `Upgrade: h2c` is answered as any other",
    "drain": "told to stop, the server lets a stream end, and ends another with an event that says so",
    "refuse": "a mounted Flask app refuses uploads: clients read the whole answer, no socket and no memory is kept",
    "browser": "Chromium shows the answer of a mounted Flask app that refuses its upload",
    "header": "a mounted Flask app is told of no header whose name has an underscore",
}
WITHOUT_CLIENT = {"drain": ("drain",), "flask": ("refuse", "browser", "header")}
"""The checks of a server that no client makes, by their column."""


@dataclass(frozen=True)
class Client:
    """A client: how it is started, and what its users can't do with it."""

    name: str
    command: tuple[str, ...]
    """`python` or `node`, a file of `clients/`, and its arguments."""
    requirements: str = ""
    """The file of `clients/` that pins its environment; "": that of whoever runs the matrix."""
    without: tuple[tuple[str, str], ...] = ()
    """Checks that it has no way to make, and why."""
    programs: tuple[str, ...] = ()
    """Programs, of which one must be on the machine."""

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that it makes."""
        missing = {check for check, _ in self.without}
        missing |= {check for checks in WITHOUT_CLIENT.values() for check in checks}
        return tuple(check for check in CHECKS if check not in missing)


CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_NO_UPGRADE = ("upgrade", "it offers no upgrade; Java's HttpClient does, and curl")
_NO_STREAMS = (
    *((check, "OpenAI's API has no streams to resume") for check in ("resume", "end", "stop")),
    _NO_UPGRADE,
)
_ONLY_STREAMS = (
    ("whole", "an answer on /streams is a stream"),
    ("tool", "the text format has no tool calls"),
    ("leave", "a stream that can be resumed goes on without its reader; see stop"),
    _NO_UPGRADE,
)

CLIENTS = (
    Client("openai-python 3", ("python", "openai_python.py"), "openai-3.txt", _NO_STREAMS),
    Client("openai-python 2", ("python", "openai_python.py"), "openai-2.txt", _NO_STREAMS),
    Client("langchain-openai", ("python", "langchain_openai_client.py"), "langchain-openai.txt", _NO_STREAMS),
    Client("openai-agents", ("python", "openai_agents_client.py"), "openai-agents.txt", _NO_STREAMS),
    Client("openai-node", ("node", "openai.mjs"), "package-lock.json", _NO_STREAMS, ("npm",)),
    Client("ai-sdk", ("node", "ai-sdk.mjs"), "package-lock.json", _NO_STREAMS, ("npm",)),
    Client("httpx-sse", ("python", "httpx_sse_client.py"), "httpx-sse.txt", _ONLY_STREAMS),
    Client("curl", ("python", "curl_client.py"), programs=("curl",)),
    Client(
        "fetch",
        ("python", "chromium_client.py", "fetch"),
        without=(("tool", "fetch puts nothing together; curl's check reads the same JSON"), _NO_UPGRADE),
        programs=CHROMIUM,
    ),
    Client("eventsource", ("python", "chromium_client.py", "eventsource"), without=_ONLY_STREAMS, programs=CHROMIUM),
)

SERVERS = {
    "hypercorn": "at /ai",
    "hypercorn+uvloop": "at /ai",
    "uvicorn": "cutting /ai",
    "gunicorn": "cutting /ai",
    "granian": "at /ai",
}
"""The servers of the page, and how nginx passes on what is below `/ai`."""

WAYS = {
    "direct": "no proxy",
    "nginx": "as the page says",
    "nginx /ai": "as the page says, the app below /ai",
    "nginx bare": "a proxy_pass alone: HTTP/1.0, and only X-Accel-Buffering keeps it from holding events back",
}
UPSTREAM_CLIENTS = {
    "httpx": ("direct", "nginx", "nginx /ai", "nginx bare"),
    "httpx2": ("direct", "nginx", "nginx /ai"),
}
"""The clients that ask the upstream, and the ways to the servers that have them."""
QUARTS = {"0.22": (3, 11), "0.23": (3, 13)}
"""The versions of Quart, and the oldest Python for each."""


@dataclass(frozen=True, order=True)
class Environment:
    """One Python with one Quart."""

    python: str
    quart: str

    def __str__(self) -> str:
        return f"Python {self.python}, Quart {self.quart}"

    @property
    def impossible(self) -> str:
        """Why there is no such environment, or ""."""
        oldest = QUARTS[self.quart]
        if tuple(map(int, self.python.split("."))) >= oldest:
            return ""
        return f"Quart {self.quart} needs Python {'.'.join(map(str, oldest))}"


@dataclass(frozen=True)
class Row:
    """One server side."""

    environment: Environment
    upstream_client: str
    server: str
    way: str

    def __str__(self) -> str:
        environment = self.environment
        return f"{environment.python} {environment.quart} {self.upstream_client:6} {self.server} {self.way}"


def rows(environment: Environment, servers: tuple[str, ...], *, quick: bool) -> list[Row]:
    """The server sides of one environment. *quick*: one client upstream, and no proxy."""
    ways = {"httpx": ("direct",)} if quick else UPSTREAM_CLIENTS
    return [Row(environment, client, server, way) for client, server in product(ways, servers) for way in ways[client]]


@dataclass(frozen=True)
class Known:
    """A check that is known to fail, and why. Empty names stand for all."""

    check: str
    why: str
    client: str = ""
    server: str = ""
    way: str = ""

    def covers(self, row: Row, client: str, check: str) -> bool:
        """Whether this is about that check of that cell."""
        about = ((self.check, check), (self.client, client), (self.server, row.server), (self.way, row.way))
        return all(name in ("", found) for name, found in about)


KNOWN: tuple[Known, ...] = ()
