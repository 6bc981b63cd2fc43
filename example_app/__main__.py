"""`python -m example_app`: the app on hypercorn, with the simulator behind it where there is no key."""

from __future__ import annotations

import os
import sys
from typing import Any

from hypercorn.utils import LifespanFailureError

from example_app.accounts import DEMO_ACCOUNTS
from example_app.app import create_app
from example_app.conversations import DatabaseUnusable
from example_app.serving import Site, command_line, run
from quart_openai_sse.errors import ConfigurationError


def main() -> int:
    """Reads the command line and serves. 1 if the address, the database or the log cannot be used."""
    parser = command_line(
        "python -m example_app",
        "A chat app that streams. Honours OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL; without a key or an "
        "address the built-in simulator answers. EXAMPLE_TOKEN lets API clients in at /v1.",
    )
    parser.add_argument(
        "--database",
        default=os.environ.get("EXAMPLE_DATABASE"),
        metavar="FILE",
        help="the SQLite file with the conversations (default: EXAMPLE_DATABASE, else instance/chat.db)",
    )
    parser.add_argument(
        "--log",
        metavar="ADDRESS",
        help="where streams are kept, so that several processes share them: redis://127.0.0.1:6379/0, or "
        "sqlite:///streams.db for a file in instance/ (default: QUART_OPENAI_SSE_LOG, else the process's memory)",
    )
    options = parser.parse_args()

    def create(url: str, simulator: str) -> Site:
        settings: dict[str, Any] = {"SIMULATED": True, "OPENAI_SSE_BASE_URL": simulator} if simulator else {}
        if options.log:
            settings["OPENAI_SSE_LOG"] = options.log
        app = create_app(DATABASE=options.database, **settings)
        return Site(app, app.extensions["ai"], _welcome(url))

    try:
        return run(options, create)
    except DatabaseUnusable as error:
        sys.stderr.write(f"Can't keep conversations in {error}. Try --database.\n")
    except ConfigurationError as error:
        sys.stderr.write(f"Can't start: {error}\n")
    except LifespanFailureError as error:  # what the app raised as the server started it
        sys.stderr.write(f"Can't start: {error.__context__ or error}\n")
    return 1


def _welcome(url: str) -> str:
    name, password = next(iter(DEMO_ACCOUNTS.items()))
    lines = [f"Chat: {url}/ (log in as {name} with the password {password})"]
    if os.environ.get("EXAMPLE_TOKEN"):
        lines.append(f"OpenAI-compatible API: {url}/v1 with EXAMPLE_TOKEN as the key")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
