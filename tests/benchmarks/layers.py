"""Where the work of one event is done: `python -m tests.benchmarks.layers`. Counts, which are the same each time."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import runpy
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.benchmarks.harness import start_load, start_server
from tests.benchmarks.modes import modes
from tests.benchmarks.prepare import CACHE
from tests.benchmarks.servers import SERVERS, Server

LAYERS = (
    ("transport", "reading the upstream's connection", ("quart_openai_sse/transport/",)),
    ("upstream", "deadlines, attempts, keys", ("quart_openai_sse/upstreams/",)),
    ("SSE decoder", "bytes into events", ("protocol/sse.py:SSEDecoder", "protocol/upstream_events.py")),
    (
        "state machine",
        "what a chunk means",
        ("quart_openai_sse/protocol/completeness.py", "quart_openai_sse/protocol/chunks.py"),
    ),
    (
        "producer",
        "events into entries, the record",
        ("quart_openai_sse/producers/", "quart_openai_sse/protocol/assembly.py"),
    ),
    ("log", "its limits, and handing over to the reader", ("quart_openai_sse/logs/",)),
    (
        "format",
        "entries into the client's bytes",
        ("quart_openai_sse/formats/", "quart_openai_sse/protocol/sse.py"),
    ),
    ("rules", "JSON, requests, trace ids, an upstream's errors", ("quart_openai_sse/protocol/",)),
    ("response", "the body Quart iterates over", ("quart_openai_sse/web/event_stream.py",)),
    ("middleware", "what the response's log line counts", ("quart_openai_sse/web/middleware.py",)),
    ("engine", "what is left of ours", ("quart_openai_sse/",)),
    ("Quart", "its loop over the body", ("/quart/",)),
    ("server", "framing and writing", ("/uvicorn/", "/hypercorn/", "/granian/", "/h11/", "/h2/")),
    ("event loop", "asyncio's own", ("/asyncio/", "/selectors.py")),
    ("others", "other libraries, and the standard one", ("",)),
)
"""A function is in the first layer that has a part of its place: the path of its file, a colon, and its name."""


def main() -> None:
    """Reads the command line, and prints the table of one server."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.layers",
        description="Counts what one relayed event costs in lockstep, layer by layer: calls of Python functions, and"
        " the bytecode instructions they execute. It says nothing of what C code does meanwhile.",
    )
    names = [each.name for each in SERVERS if each.packages]
    parser.add_argument("--server", default="ours-uvicorn", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--functions", action="store_true", help="each function, too")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _count_inside(Path(options.inside[0]), options.inside[1:])
    else:
        server = next(each for each in SERVERS if each.name == options.server)
        sys.stdout.write(asyncio.run(_profile(server, functions=options.functions)))


async def _profile(server: Server, *, functions: bool) -> str:
    """The table of *server*."""
    with tempfile.TemporaryDirectory(prefix="layers-") as work:
        counts = Path(work) / "counts.json"
        python, *command = server.command
        if "hypercorn" in command:
            command += ("--workers", "0")  # it serves in the process that it was started as
        inside = (python, "-m", __spec__.name, "--inside", str(counts), *command)
        async with (
            start_load(CACHE, Path(work), tls=False) as load,
            start_server(replace(server, command=inside), load, CACHE) as running,
        ):
            pids = running.pids()
            _tell(pids)
            [mode] = modes(["lockstep"], seconds=2)
            outcome = await load.run(running.task(**mode.task))
            _tell(pids)
        return _table(json.loads(counts.read_text("utf-8")), outcome["events"], functions=functions)


def _tell(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)


def _table(counts: list[tuple[str, int, int]], events: int, *, functions: bool) -> str:
    layers: dict[str, list[tuple[str, float, float]]] = {name: [] for name, *_ in LAYERS}
    for place, calls, executed in counts:
        if executed >= events / 100:  # not what happens once in a stream
            layers[layer_of(place)].append((place, calls / events, executed / events))
    rows = [f"{'':14} {'calls':>6} {'bytecode':>9}", ""]
    for name, about, _ in LAYERS:
        if layers[name]:
            rows.append(_row(name, layers[name]) + f"  {about}")
        if functions:
            rows += [f"    {place} {calls:.2f} {executed:.1f}" for place, calls, executed in sorted(layers[name])]
    rows.append(_row("all", [each for found in layers.values() for each in found]))
    return "\n".join(rows) + "\n"


def layer_of(place: str) -> str:
    """The name of the layer that the function at *place* is in."""
    return next(name for name, _, parts in LAYERS if any(part in place for part in parts))


def _row(name: str, found: list[tuple[str, float, float]]) -> str:
    return f"{name:14} {sum(calls for _, calls, _ in found):6.1f} {sum(executed for *_, executed in found):9.1f}"


def _count_inside(path: Path, command: list[str]) -> None:
    """Runs `python` with *command*. Counts from the first SIGUSR1 to the second, and writes the counts to *path*."""
    calls: Counter[CodeType] = Counter()
    executed: Counter[CodeType] = Counter()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            executed[frame.f_code] += 1
        return local

    def traced(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        calls[frame.f_code] += 1
        return local

    def switch(*_: Any) -> None:
        if sys.gettrace() is None:
            sys.settrace(traced)
            return
        sys.settrace(None)
        places = [(f"{code.co_filename}:{code.co_qualname}", calls[code], n) for code, n in executed.items()]
        path.write_text(json.dumps(places), "utf-8")

    signal.signal(signal.SIGUSR1, switch)
    module = command.index("-m")
    sys.argv = [command[module + 1], *command[module + 2 :]]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
