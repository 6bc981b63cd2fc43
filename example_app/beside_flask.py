"""`python -m example_app.beside_flask`: the old Flask app and the streaming app beside it, in one process."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from flask import Flask
from quart import Quart, url_for
from quart.typing import ResponseReturnValue
from sqlalchemy.exc import DBAPIError

from example_app.accounts import DEMO_ACCOUNTS
from example_app.flask_app import create_app as create_flask_app
from example_app.flask_app.models import Message, User, db
from example_app.serving import Site, command_line, run
from example_app.text import storable
from quart_openai_sse import QuartOpenAISSE, StreamEnd, bearer_tokens, first_of, session_user
from quart_openai_sse.auth import on_behalf_of
from quart_openai_sse.errors import InvalidRequest, OpenAISSEError, PermissionDenied
from quart_openai_sse.flask import mount, share_session

PREFIXES = ("/v1", "/ask")
"""What the streaming app answers."""


def create_streaming_app(flask_app: Flask, **settings: Any) -> Quart:
    """The app beside *flask_app*: it knows the same session cookie, and asks and stores by the same models."""
    app = Quart(__name__)
    share_session(flask_app, app)
    app.config.from_prefixed_env()
    app.config.setdefault("OPENAI_SSE_MODEL", os.environ.get("OPENAI_MODEL") or "gpt-5-mini")
    app.config.update(settings)

    models = Models(flask_app)
    # The Flask app itself may start a stream for its user; who has EXAMPLE_TOKEN may not.
    tokens = {flask_app.config["SERVICE_TOKEN"]: "flask", os.environ.get("EXAMPLE_TOKEN", ""): "api"}
    service = on_behalf_of(bearer_tokens(tokens), allowed={"flask"})
    ai = QuartOpenAISSE(app, auth=first_of(service, session_user(load=models.has_user)))
    app.extensions["ai"] = ai

    @ai.on_end
    def store(end: StreamEnd) -> None:
        if "chat" in end.metadata:
            models.add(end.principal.id, "assistant", end.text, end.outcome)

    @app.post("/ask")
    async def ask() -> ResponseReturnValue:
        me = await ai.principal()
        if not me.cookie:
            raise PermissionDenied("Only a user of the pages has a conversation.")
        content = (await ai.body()).get("content")
        if not isinstance(content, str) or not content.strip():
            raise InvalidRequest("content must be a question in words.", param="content")
        question = {"role": "user", "content": content}
        body = {"messages": [*await asyncio.to_thread(models.conversation, me.id), question]}
        # Stored before the stream starts: a question stands before its answer, however fast that is.
        asked = await asyncio.to_thread(models.add, me.id, **question)
        try:
            stream = await ai.start(body, principal=me, thread=f"chat:{me.id}", metadata={"chat": True})
        except OpenAISSEError:  # too many streams, for example
            await asyncio.to_thread(models.remove, asked)
            raise
        return {"id": stream.id, "url": url_for("openai_sse.read_stream", stream_id=stream.id)}, 201

    return app


class Models:
    """The old app's models, for threads: they wait for a database, and need the old app's context."""

    def __init__(self, flask_app: Flask) -> None:
        self._context = flask_app.app_context

    def has_user(self, user_id: str) -> bool:
        """Whether there is such a user, who may log in."""
        try:
            number = int(user_id)
        except ValueError:
            return False
        with self._context():
            user = db.session.get(User, number)
            return user is not None and user.is_active

    def conversation(self, user_id: str) -> list[dict[str, str]]:
        """What was said, as a model wants it."""
        with self._context():
            return db.session.get_one(User, int(user_id)).conversation()

    def add(self, user_id: str, role: str, content: str, outcome: str = "") -> int:
        """Stores a question or an answer; its id."""
        with self._context():
            message = Message(user_id=int(user_id), role=role, content=storable(content), outcome=outcome)
            db.session.add(message)
            db.session.commit()
            return message.id

    def remove(self, message_id: int) -> None:
        """Forgets a question that was not accepted."""
        with self._context():
            db.session.delete(db.session.get_one(Message, message_id))
            db.session.commit()


def main() -> int:
    """Reads the command line and serves. 1 if the address can't be had."""
    parser = command_line(
        "python -m example_app.beside_flask",
        "An old Flask app, and streaming beside it. Honours OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL; without "
        "a key or an address the built-in simulator answers. EXAMPLE_TOKEN lets API clients in at /v1.",
    )
    parser.add_argument(
        "--database",
        type=Path,
        default=os.environ.get("EXAMPLE_DATABASE") or None,
        metavar="FILE",
        help="an SQLite file (default: EXAMPLE_DATABASE); without one nothing is kept",
    )
    parser.add_argument(
        "--only-streams",
        action="store_true",
        help="without the Flask app's pages, which another server has; both need the same EXAMPLE_DATABASE, "
        "EXAMPLE_SECRET_KEY and EXAMPLE_SERVICE_TOKEN",
    )
    options = parser.parse_args()
    if options.only_streams and not (options.database and os.environ.get("EXAMPLE_SECRET_KEY")):
        parser.error("--only-streams needs a database and EXAMPLE_SECRET_KEY: those of the Flask app")
    with tempfile.TemporaryDirectory() as folder:
        database = (options.database or Path(folder, "chat.db")).absolute()

        def create(url: str, simulator: str) -> Site:
            settings: dict[str, Any] = {"OPENAI_SSE_BASE_URL": simulator, "OPENAI_SSE_MODEL": "sim"}
            return _site(url, database, settings if simulator else {}, only_streams=options.only_streams)

        try:
            return run(options, create)
        except DBAPIError:
            sys.stderr.write(f"Can't keep conversations in {database}. Try --database.\n")
            return 1


def _site(url: str, database: Path, settings: dict[str, Any], *, only_streams: bool) -> Site:
    flask_settings: dict[str, Any] = {"SQLALCHEMY_DATABASE_URI": f"sqlite:///{database}"}
    if only_streams:
        flask_settings["CREATE_TABLES"] = False
    else:
        flask_settings |= {"STREAMS_URL": url, "SERVICE_TOKEN": secrets.token_hex()}
    flask_app = create_flask_app(**flask_settings)
    quart_app = create_streaming_app(flask_app, **settings)
    ai = quart_app.extensions["ai"]
    if only_streams:
        served = " and ".join(url + prefix for prefix in PREFIXES)
        return Site(quart_app, ai, f"Streams: {served} (the pages are at the Flask app's address)")
    name, password = next(iter(DEMO_ACCOUNTS.items()))
    app = mount(flask_app, quart_app, prefix=PREFIXES)
    return Site(app, ai, f"Chat: {url}/ (log in as {name} with the password {password})")


if __name__ == "__main__":
    sys.exit(main())
