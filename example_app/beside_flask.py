"""`python -m example_app.beside_flask`: the old Flask app and the streaming app beside it, in one process."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from flask import Flask
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, request, url_for
from quart.typing import ResponseReturnValue

from example_app.__main__ import _listen, _log_to_stderr, _welcome
from example_app.flask_app import create_app as create_flask_app
from example_app.flask_app.models import Message, User, db
from quart_openai_sse import QuartOpenAISSE, StreamEnd, session_user
from quart_openai_sse.errors import InvalidRequest, OpenAISSEError
from quart_openai_sse.mount import mount
from quart_openai_sse.requests import parse_body
from quart_openai_sse.simulator import serve_simulator

PREFIXES = ("/v1", "/ask")
"""What the streaming app answers."""


def create_streaming_app(flask_app: Flask, **settings: Any) -> Quart:
    """The app beside *flask_app*: it knows the same session cookie, and asks and stores by the same models."""
    app = Quart(__name__)
    app.config.update(SECRET_KEY=flask_app.config["SECRET_KEY"])
    app.config.setdefault("OPENAI_SSE_MODEL", os.environ.get("OPENAI_MODEL") or "gpt-5-mini")
    app.config.update(settings)

    # Flask's models know nothing of an event loop: whatever touches them runs in a thread, in the old app's context.
    def load(user_id: str) -> bool:
        with flask_app.app_context():
            user = db.session.get(User, int(user_id))
            return user is not None and user.is_active

    def add(user_id: str, role: str, content: str, outcome: str = "") -> int:
        with flask_app.app_context():
            message = Message(user_id=int(user_id), role=role, content=content, outcome=outcome)
            db.session.add(message)
            db.session.commit()
            return message.id

    def remove(message_id: int) -> None:
        with flask_app.app_context():
            db.session.delete(db.session.get_one(Message, message_id))
            db.session.commit()

    def conversation(user_id: str) -> list[dict[str, str]]:
        with flask_app.app_context():
            user = db.session.get_one(User, int(user_id))
            return [{"role": each.role, "content": each.content} for each in user.messages if each.content]

    ai = QuartOpenAISSE(app, auth=session_user(load=load))
    app.extensions["ai"] = ai

    @ai.on_end
    def store(end: StreamEnd) -> None:
        if "chat" in end.metadata:
            add(end.principal.id, "assistant", end.text, end.outcome)

    @app.post("/ask")
    async def ask() -> ResponseReturnValue:
        me = await ai.principal()
        content = parse_body(await request.data, content_type=request.headers.get("Content-Type", "")).get("content")
        if not isinstance(content, str) or not content.strip():
            raise InvalidRequest("content must be a question in words.", param="content")
        question = {"role": "user", "content": content}
        body = {"messages": [*await asyncio.to_thread(conversation, me.id), question]}
        # Stored before the stream starts: a question stands before its answer, however fast that is.
        asked = await asyncio.to_thread(add, me.id, **question)
        try:
            stream = await ai.start(body, principal=me, thread=f"chat:{me.id}", metadata={"chat": True})
        except OpenAISSEError:  # too many streams, for example
            await asyncio.to_thread(remove, asked)
            raise
        return {"id": stream.id, "url": url_for("openai_sse.read_stream", stream_id=stream.id)}, 201

    return app


async def run(listener: socket.socket, *, drain_timeout: float, database: Path, only_streams: bool) -> None:
    """Serves until SIGTERM or SIGINT; then lets running answers end, and tells the rest of the shutdown."""
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {}
        if not os.environ.get("OPENAI_API_KEY") and not os.environ.get("OPENAI_BASE_URL"):
            simulator = await stack.enter_async_context(serve_simulator())
            settings = {"OPENAI_SSE_BASE_URL": simulator.base_url, "OPENAI_SSE_MODEL": "sim"}
        flask_app = create_flask_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{database}", CREATE_TABLES=not only_streams)
        quart_app = create_streaming_app(flask_app, **settings)
        app: Any = quart_app if only_streams else mount(flask_app, quart_app, prefix=PREFIXES)

        async def shutdown() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()
            await quart_app.extensions["ai"].drain(drain_timeout)

        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.loglevel = "WARNING"
        _welcome(*listener.getsockname()[:2], simulated=bool(settings))
        try:
            await serve(app, config, shutdown_trigger=shutdown)
        finally:
            listener.detach()


def main() -> int:
    """Reads the command line and serves. 1 if the address can't be had."""
    parser = argparse.ArgumentParser(
        prog="python -m example_app.beside_flask",
        description="An old Flask app, and streaming beside it. Honours OPENAI_API_KEY, OPENAI_BASE_URL and "
        "OPENAI_MODEL; without a key or an address the built-in simulator answers.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="the port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--drain-timeout", type=float, default=10, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument(
        "--database",
        type=Path,
        default=os.environ.get("EXAMPLE_DATABASE"),
        help="an SQLite file (default: EXAMPLE_DATABASE); without one nothing is kept",
    )
    parser.add_argument(
        "--only-streams",
        action="store_true",
        help="without the Flask app's pages, which another server has; both need the same EXAMPLE_SECRET_KEY",
    )
    options = parser.parse_args()
    _log_to_stderr()
    try:
        listener = _listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", error)).rstrip(".")
        sys.stderr.write(f"Can't listen on {options.host} port {options.port}: {reason}. Try --port.\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        database = (options.database or Path(folder, "chat.db")).absolute()
        drain_timeout, only_streams = options.drain_timeout, options.only_streams
        asyncio.run(run(listener, drain_timeout=drain_timeout, database=database, only_streams=only_streams))
    return 0


if __name__ == "__main__":
    sys.exit(main())
