"""The app as it was before: a login, a page, a log-out. Only the lines that mention `ai` are about streaming."""

from __future__ import annotations

import os
import secrets
from typing import Any

from quart import Blueprint, Quart, Response, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue
from quart_auth import AuthUser, QuartAuth, Unauthorized, current_user, login_required, login_user, logout_user

from example_app.accounts import DEMO_ACCOUNTS, password_is_right
from example_app.ai import create_ai, messages

pages = Blueprint("pages", __name__)


def create_app(**settings: Any) -> Quart:
    """The app; *settings* go into its configuration (`OPENAI_SSE_BASE_URL`, `SIMULATED` …)."""
    app = Quart(__name__)
    app.config.update(
        SECRET_KEY=os.environ.get("EXAMPLE_SECRET_KEY") or secrets.token_hex(),
        QUART_AUTH_COOKIE_SAMESITE="Lax",
        QUART_AUTH_COOKIE_SECURE=False,  # the example speaks plain HTTP, on this machine
        SIMULATED=False,
    )
    app.config.from_prefixed_env()
    app.config.update(settings)
    QuartAuth(app)
    app.register_blueprint(pages)

    ai = create_ai(app)
    app.register_blueprint(messages(ai))
    app.extensions["ai"] = ai

    app.register_error_handler(Unauthorized, _to_login)
    app.after_request(_secure)
    return app


@pages.get("/")
@login_required
async def chat() -> str:
    """The chat page."""
    return await render_template("chat.html", user=current_user.auth_id)


@pages.get("/login")
async def login_page() -> str:
    """The form to log in with."""
    return await _login_page()


@pages.post("/login")
async def login() -> ResponseReturnValue:
    """Logs in, or says that it did not work."""
    form = await request.form
    name = form.get("username", "").strip().lower()
    if not password_is_right(name, form.get("password", "")):
        return await _login_page(error="This name and password do not go together."), 401
    login_user(AuthUser(name))
    return redirect(url_for("pages.chat"), 303)


@pages.post("/logout")
async def logout() -> ResponseReturnValue:
    """Logs out."""
    logout_user()
    return redirect(url_for("pages.login_page"), 303)


async def _login_page(error: str = "") -> str:
    name, password = next(iter(DEMO_ACCOUNTS.items()))
    return await render_template("login.html", user=None, error=error, demo_user=name, demo_password=password)


async def _to_login(_: Exception) -> ResponseReturnValue:
    return redirect(url_for("pages.login_page"), 303)


async def _secure(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
