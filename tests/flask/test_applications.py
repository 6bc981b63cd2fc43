"""What `mount` refuses, and what it warns of."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pytest
from a2wsgi import WSGIMiddleware
from flask import Blueprint, Flask
from flask import request as flask_request
from quart import Quart
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Request, Response

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.flask import mount
from tests.conftest import Serve
from tests.flask.test_mounting import connect, received, request_to


class ConnexionsFlaskApp:
    """An ASGI app around a Flask app, as Connexion's since version 3."""

    def __init__(self) -> None:
        self.app = Flask("inner")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError


class SyncASGI:
    """An ASGI app whose `__call__` returns an awaitable."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        raise AssertionError


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app."""


@functools.wraps(asgi)
def decorated(*args: Any) -> Any:
    """An ASGI app in a decorator."""


def create_app() -> Flask:
    """A function that was not called."""
    return Flask("made")


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (ConnexionsFlaskApp(), r"ConnexionsFlaskApp is an ASGI app"),
        (functools.partial(ConnexionsFlaskApp()), "is an ASGI app"),
        (WSGIMiddleware(lambda environ, start_response: []), "WSGIMiddleware is an ASGI app"),
        (SyncASGI(), "SyncASGI is an ASGI app"),
        (asgi, "asgi is an ASGI app"),
        (decorated, "asgi is an ASGI app"),
        (Quart("first"), "the first argument is a Quart app. Pass the Flask app first"),
        (create_app, "create_app cannot be called with environ and start_response"),
        (None, "must be a WSGI app, such as a Flask app, not .*NoneType"),
        ("app:app", "must be a WSGI app, such as a Flask app, not .*str"),
    ],
)
def test_what_is_no_wsgi_app_is_refused(app: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        mount(app, Quart("streams"))


def wsgi(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI app."""
    start_response("200 OK", [])
    return [b"wsgi"]


class Answer:
    """A WSGI app that is a class, as PEP 3333 has it."""

    def __init__(self, environ: Any, start_response: Callable[..., Any]) -> None:
        start_response("200 OK", [])

    def __iter__(self) -> Iterator[bytes]:
        yield b"wsgi"


class Static:
    """A WSGI app that is a static method."""

    @staticmethod
    def app(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        return wsgi(environ, start_response)


def middleware(*args: Any, **kwargs: Any) -> Iterable[bytes]:
    """A WSGI app that passes on whatever it is called with."""
    return wsgi(*args, **kwargs)


def configured(config: str, environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI app once it has its first argument."""
    return wsgi(environ, start_response)


@Request.application
def of_werkzeug(request: Request) -> Response:
    """A WSGI app that Werkzeug's decorator makes of a function of the request."""
    return Response("wsgi")


@functools.wraps(configured)
def with_argument(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI app in a decorator that adds an argument."""
    return configured("config", environ, start_response)


class Loader:
    """A WSGI app whose routes are not of Werkzeug's, and which has no app yet."""

    url_map: ClassVar = {"/": wsgi}

    @property
    def app(self) -> Any:
        raise RuntimeError("The app is not loaded yet.")

    def __call__(self, environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.url_map["/"](environ, start_response)


def small_flask() -> Flask:
    app = Flask("small")
    app.add_url_rule("/", view_func=lambda: "wsgi", endpoint="page")
    return app


@pytest.mark.parametrize(
    "app",
    [
        wsgi,
        Answer,
        Static.app,
        middleware,
        functools.partial(configured, "config"),
        of_werkzeug,
        with_argument,
        Loader(),
        small_flask(),
        small_flask().wsgi_app,
        ProxyFix(small_flask()),
        DispatcherMiddleware(small_flask(), {"/other": wsgi}),
    ],
    ids=lambda app: getattr(app, "__name__", type(app).__name__),
)
async def test_any_wsgi_app_is_served(app: Any, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    client = await serve(mount(app, Quart("streams")))
    assert (await client.get("/")).text == "wsgi"
    assert caplog.records == []


# Routes that are hidden -----------------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Flask:
    """A Flask app with an API at /v1, as flask-smorest makes one."""
    app = Flask("api")
    pets = Blueprint("pets", __name__, url_prefix="/v1/pets")
    pets.add_url_rule("/", view_func=lambda: "", endpoint="list")
    pets.add_url_rule("/", view_func=lambda: "", endpoint="create", methods=["POST"])
    pets.add_url_rule("/<int:pet>", view_func=lambda pet: "", endpoint="one")
    app.register_blueprint(pets)
    app.add_url_rule("/v1", view_func=lambda: "", endpoint="root")
    app.add_url_rule("/v1x", view_func=lambda: "", endpoint="beside")
    app.add_url_rule("/<path:rest>", view_func=lambda rest: "", endpoint="rest")
    return app


WRAPPED: dict[str, Callable[[Flask], Any]] = {
    "the app": lambda app: app,
    "its method": lambda app: app.wsgi_app,
    "middleware": lambda app: ProxyFix(DispatcherMiddleware(app.wsgi_app)),
    "partial": functools.partial,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_routes_of_flasks_below_the_prefix_are_one_warning(
    wrap: Callable[[Flask], Any], api: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    mount(wrap(api), Quart("streams"))
    [record] = caplog.records
    assert "requests below /v1 go to the Quart app" in record.getMessage()
    assert "are not reached: /v1, /v1/pets/, /v1/pets/<int:pet>. " in record.getMessage()


def test_a_warning_names_some_of_many_routes(api: Flask, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        api.add_url_rule(f"/ask/{number}", view_func=lambda: "", endpoint=f"ask {number}")
    mount(api, Quart("streams"), prefix=["/v1", "/ask/"])
    [record] = caplog.records
    assert "requests below /ask and /v1 go" in record.getMessage()
    assert ": /ask/0, /ask/1, /ask/2, /ask/3, /ask/4 and 8 more. " in record.getMessage()


def test_routes_beside_the_prefix_are_no_warning(api: Flask, caplog: pytest.LogCaptureFixture) -> None:
    mount(api, Quart("streams"), prefix="/streams")
    assert caplog.records == []


class Circle:
    """A WSGI app that says that it wraps itself."""

    @property
    def app(self) -> Circle:
        return self

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        raise AssertionError


def test_a_wrapper_without_end_is_opened_for_a_while_only() -> None:
    mount(Circle(), Quart("streams"))


# Websockets -----------------------------------------------------------------------------------------------------------


async def test_the_first_websocket_that_is_refused_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    app = mount(small_flask(), Quart("streams"))
    for path in ("/live\n", "/live", "/other"):
        assert await connect(app, path) == ["websocket.close"]
    [record] = caplog.records
    assert record.getMessage().startswith("mount: a websocket to /live%0A was refused with 403")
    assert "Flask-Sock, Flask-SocketIO" in record.getMessage()


# What the Flask app is told -------------------------------------------------------------------------------------------


async def test_flask_is_told_what_gunicorn_tells() -> None:
    app = small_flask()
    told: list[Any] = []

    @app.get("/told")
    def tell() -> str:
        told.extend(flask_request.environ[key] for key in ("REMOTE_ADDR", "wsgi.multiprocess", "wsgi.errors"))
        return ""

    async def send(message: Any) -> None:
        pass

    await mount(app, Quart("streams"))({**request_to("/told"), "client": None}, received(), send)
    assert told == ["", False, sys.stderr]  # the address is that of a client on a unix socket


async def test_flask_is_told_the_address_of_a_client(serve: Serve) -> None:
    app = small_flask()
    app.add_url_rule("/told", view_func=lambda: flask_request.remote_addr or "", endpoint="told")
    client = await serve(mount(app, Quart("streams")))
    assert (await client.get("/told")).text == "127.0.0.1"
