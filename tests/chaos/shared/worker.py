"""A worker of a small app, as a program: `python -m tests.chaos.shared.worker` with the extension's options as JSON.

It prints its port, and ends by SIGTERM. At SIGUSR1 its clock jumps by as many seconds as CHAOS_JUMP says. Each call of
its `on_end` adds a line to the file CHAOS_ENDS.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from typing import Any

TOKEN = "token-ann"


def create_app(options: dict[str, Any]) -> Any:
    """The app. Everything is imported here, after the clock was replaced."""
    from quart import Quart

    from quart_openai_sse import QuartOpenAISSE, bearer_tokens

    app = Quart(__name__)
    ends = os.open(os.environ["CHAOS_ENDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    ai = QuartOpenAISSE(app, auth=bearer_tokens({TOKEN: "ann"}), **options)

    @ai.on_end
    async def note(end: Any) -> None:
        line = f"{end.id} {end.outcome} {end.reason or '-'} {end.attempt} {os.getpid()}\n"
        os.write(ends, line.encode())  # one write to a file that all workers append to

    return app


def replace_clock(jump: float) -> None:
    """Lets `time.time` jump at SIGUSR1."""
    real, offsets = time.time, [0.0]
    signal.signal(signal.SIGUSR1, lambda *_: offsets.append(jump))
    time.time = lambda: real() + offsets[-1]


async def serve(app: Any) -> None:
    """Serves it until SIGTERM."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=6)
        server = uvicorn.Server(config)

        async def tell() -> None:
            while not server.started:
                await asyncio.sleep(0.01)
            sys.stdout.write(f"{listening.getsockname()[1]}\n")
            sys.stdout.flush()

        telling = asyncio.ensure_future(tell())
        await server.serve([listening])
        telling.cancel()


if __name__ == "__main__":
    replace_clock(float(os.environ.get("CHAOS_JUMP", "0")))
    asyncio.run(serve(create_app(json.loads(sys.argv[1]))))
