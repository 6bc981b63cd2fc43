"""The pages of the old app: log in, the conversation, its summary, log out."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required, login_user, logout_user  # type: ignore[import-untyped]

from example_app.accounts import DEMO_ACCOUNTS
from example_app.flask_app.models import User, password_is_right
from example_app.logins import TooManyTries

pages = Blueprint("pages", __name__)


@pages.before_request
def only_own_forms() -> None:
    """A form of another site could log a visitor in as somebody else, or out: no cookie need be sent with it."""
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None and urlsplit(origin).netloc != request.host:
        abort(403)


@pages.route("/")
@login_required  # type: ignore[untyped-decorator]
def chat() -> str:
    """The conversation so far. A script adds what comes."""
    return render_template("old/chat.html", messages=current_user.messages, thread=f"chat:{current_user.id}")


@pages.route("/summary", methods=["POST"])
@login_required  # type: ignore[untyped-decorator]
def summarise() -> ResponseReturnValue:
    """Starts a stream on behalf of the user, and sends them to the page that shows it."""
    question = {"role": "user", "content": "Summarise what we have said so far."}
    try:
        started = httpx.post(
            f"{current_app.config['STREAMS_URL']}/v1/streams",
            headers={
                "Authorization": f"Bearer {current_app.config['SERVICE_TOKEN']}",
                "X-On-Behalf-Of": current_user.get_id(),
            },
            json={"messages": [*current_user.conversation(), question]},
            trust_env=False,
        )
        started.raise_for_status()
    except httpx.HTTPError:
        current_app.logger.exception("No summary")
        abort(503, "There is no summary at the moment. Please try again.")
    return redirect(url_for("pages.summary", stream_id=started.json()["id"]), 303)


@pages.route("/summary/<stream_id>")
@login_required  # type: ignore[untyped-decorator]
def summary(stream_id: str) -> str:
    """The page with the stream's URL. A script follows it, by the user's cookie; nobody else can."""
    return render_template("old/summary.html", stream_url=f"/v1/streams/{stream_id}")


@pages.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    """The form to log in with, and what it sends."""
    hint: dict[str, Any] = dict(zip(("demo_user", "demo_password"), next(iter(DEMO_ACCOUNTS.items())), strict=True))
    if request.method == "GET":
        return render_template("old/login.html", **hint)
    hint["username"] = request.form.get("username", "").strip()
    name, tries = hint["username"].lower(), current_app.extensions["login_tries"]
    user = User.named(name)

    def is_right() -> bool:
        return password_is_right(user, request.form.get("password", ""))

    try:
        right = tries.check(name, request.remote_addr or "", is_right=is_right)
    except TooManyTries as error:
        page = render_template("old/login.html", error=str(error), **hint)
        return page, 429, {"Retry-After": str(error.retry_after)}
    if not right or not login_user(user):
        return render_template("old/login.html", error="This name and password do not go together.", **hint), 401
    return redirect(url_for("pages.chat"), 303)


@pages.route("/logout", methods=["POST"])
def logout() -> ResponseReturnValue:
    """Ends the session."""
    logout_user()
    return redirect(url_for("pages.login"), 303)
