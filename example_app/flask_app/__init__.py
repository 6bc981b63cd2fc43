"""A Flask app as it was written years ago: Flask-Login, Flask-SQLAlchemy, pages from the server."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from flask import Flask, Response
from flask_login import LoginManager  # type: ignore[import-untyped]
from werkzeug.middleware.proxy_fix import ProxyFix

from example_app.accounts import DEMO_ACCOUNTS
from example_app.flask_app.models import User, db
from example_app.flask_app.views import pages
from example_app.logins import LoginTries


def create_app(**settings: Any) -> Flask:
    """The app; *settings* go into its configuration. Makes what tables and accounts are missing."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=os.environ.get("EXAMPLE_SECRET_KEY") or secrets.token_hex(),
        SESSION_COOKIE_SAMESITE="Lax",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{Path(os.environ.get('EXAMPLE_DATABASE') or 'chat.db').absolute()}",
        CREATE_TABLES=True,  # by one process only
        STREAMS_URL=os.environ.get("EXAMPLE_STREAMS_URL", ""),  # where the streaming app is, as this server sees it
        SERVICE_TOKEN=os.environ.get("EXAMPLE_SERVICE_TOKEN", ""),
        PROXIES=int(os.environ.get("EXAMPLE_PROXIES") or 0),  # in front of this server, which then knows the clients
    )
    app.config.update(settings)
    if app.config["PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=app.config["PROXIES"])  # type: ignore[method-assign]
    db.init_app(app)
    login_manager = LoginManager(app)
    login_manager.login_view = "pages.login"
    login_manager.login_message = ""
    login_manager.user_loader(lambda user_id: db.session.get(User, int(user_id)))
    app.register_blueprint(pages)
    app.extensions["login_tries"] = LoginTries()
    app.after_request(_secure)
    if app.config["CREATE_TABLES"]:
        with app.app_context():
            db.create_all()
            _add_accounts()
            db.engine.dispose()  # a server that forks after this (gunicorn --preload) must not share a connection
    return app


def _add_accounts() -> None:
    for name, password in DEMO_ACCOUNTS.items():
        if User.named(name) is None:
            db.session.add(User(name=name, password=password))
    db.session.commit()


def _secure(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")  # a page is its user's: not for who presses Back later
    return response
