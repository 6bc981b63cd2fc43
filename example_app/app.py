"""The app as it was before: a login, pages, a log-out. Only the lines that mention `ai` are about streaming."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quart import Blueprint, Quart, Response, abort, current_app, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue
from quart_auth import AuthUser, QuartAuth, Unauthorized, current_user, login_required, login_user, logout_user

from example_app.accounts import DEMO_ACCOUNTS, password_is_right
from example_app.ai import conversation_routes, create_ai
from example_app.conversations import ConversationNotFound, Conversations
from example_app.logins import LoginTries, TooManyTries

pages = Blueprint("pages", __name__)


def create_app(**settings: Any) -> Quart:
    """The app; *settings* go into its configuration (`DATABASE`, `OPENAI_SSE_BASE_URL`, `SIMULATED` …).

    Raises `DatabaseUnusable`.
    """
    app = Quart(__name__)
    app.config.update(
        SECRET_KEY=os.environ.get("EXAMPLE_SECRET_KEY") or secrets.token_hex(),
        QUART_AUTH_COOKIE_SAMESITE="Lax",
        QUART_AUTH_COOKIE_SECURE=False,  # the example speaks plain HTTP, on this machine
        SEND_FILE_MAX_AGE_DEFAULT=0,  # a page asks whether its scripts have changed
        DATABASE=os.environ.get("EXAMPLE_DATABASE"),
        SIMULATED=False,
    )
    app.config.from_prefixed_env()
    app.config.update(settings)
    QuartAuth(app)
    app.register_blueprint(pages)

    conversations = Conversations(app.config["DATABASE"] or Path(app.instance_path, "chat.db"))
    ai = create_ai(app, conversations)
    app.register_blueprint(conversation_routes(ai, conversations))
    app.extensions.update(ai=ai, conversations=conversations, login_tries=LoginTries())
    app.after_serving(conversations.close)  # after the extension, which stores what it has to end

    app.register_error_handler(Unauthorized, _to_login)
    app.after_request(_secure)
    return app


@pages.before_request
async def only_own_forms() -> None:
    """A form of another site could log a visitor in as somebody else, or out: no cookie need be sent with it."""
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None and urlsplit(origin).netloc != request.host:
        abort(403)


@pages.get("/")
@pages.get("/c/<conversation_id>")
@login_required
async def chat(conversation_id: str = "") -> str:
    """The chat page, with one of the user's conversations or none yet."""
    if conversation_id:
        me = await current_app.extensions["ai"].principal()
        await current_app.extensions["conversations"].get(conversation_id, owner=str(me))
    return await render_template("chat.html", user=current_user.auth_id)


@pages.errorhandler(ConversationNotFound)
async def not_found(error: ConversationNotFound) -> ResponseReturnValue:
    """A page that says so."""
    return await render_template("not_found.html", user=current_user.auth_id, error=error.user_message), 404


@pages.get("/login")
async def login_page() -> str:
    """The form to log in with."""
    return await _login_page()


@pages.post("/login")
async def login() -> ResponseReturnValue:
    """Logs in, or says that it did not work."""
    form = await request.form
    typed, password = form.get("username", "").strip(), form.get("password", "")
    name, tries = typed.lower(), current_app.extensions["login_tries"]
    try:
        right = tries.check(name, request.remote_addr or "", is_right=lambda: password_is_right(name, password))
    except TooManyTries as error:
        return await _login_page(error=str(error), username=typed), 429, {"Retry-After": str(error.retry_after)}
    if not right:
        return await _login_page(error="This name and password do not go together.", username=typed), 401
    login_user(AuthUser(name))
    return redirect(url_for("pages.chat"), 303)


@pages.post("/logout")
async def logout() -> ResponseReturnValue:
    """Logs out."""
    logout_user()
    return redirect(url_for("pages.login_page"), 303)


async def _login_page(**filled_in: str) -> str:
    name, password = next(iter(DEMO_ACCOUNTS.items()))
    return await render_template("login.html", user=None, demo_user=name, demo_password=password, **filled_in)


async def _to_login(_: Exception) -> ResponseReturnValue:
    return redirect(url_for("pages.login_page"), 303)


async def _secure(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if request.endpoint != "static":  # a conversation is not for the next person to go back to
        response.headers.setdefault("Cache-Control", "no-store")
    return response
