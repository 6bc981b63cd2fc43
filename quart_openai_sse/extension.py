"""The extension: configuration, lifecycle, registration, and what an app writes with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakSet

from quart import Blueprint, Quart, Response, current_app
from quart.blueprints import BlueprintSetupState

from quart_openai_sse.auth.hooks import Authenticate, authenticate
from quart_openai_sse.config import KEY_PREFIX, Config
from quart_openai_sse.errors import ConfigurationError, OpenAISSEError
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.observers import Observer
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.app_model import ModelFunction
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.trace_context import install_filter
from quart_openai_sse.relay.engines import Engines
from quart_openai_sse.relay.hooks import Hooks, OnEnd, Prepare
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams
from quart_openai_sse.web.blueprint import BODY_PATHS, ROUTES, create_blueprint
from quart_openai_sse.web.language import CATALOGUES, Catalogues, merged
from quart_openai_sse.web.middleware import BodyLimit, StreamLoggingMiddleware
from quart_openai_sse.web.responses import error_response, read_answer, remember_request_task
from quart_openai_sse.web.stream import Stream

_EXTENSION = "quart_openai_sse"
_LOGGED = f"{_EXTENSION}.logged"

ModelT = TypeVar("ModelT", bound=ModelFunction)
PrepareT = TypeVar("PrepareT", bound=Prepare)
TransformT = TypeVar("TransformT", bound=Transform)
OnEndT = TypeVar("OnEndT", bound=OnEnd)
ObserverT = TypeVar("ObserverT", bound=Observer)


class QuartOpenAISSE:
    """Streaming AI for a Quart app.

    *auth* says who calls. *upstream*, *log* and *client* are factories that are given the `Config`, one call per
    app and event loop: of another upstream, another log, or an HTTP client of the app's own. Several instances in
    one app take a *name* and a *config_prefix* each, none of which begins with another's. *messages* are what people
    are told in further languages: by language, from the English sentences to that language's. *options* are the
    fields of `Config`; they stand above `app.config`.
    """

    def __init__(
        self,
        app: Quart | None = None,
        *,
        auth: Authenticate | None = None,
        name: str = "openai_sse",
        config_prefix: str = KEY_PREFIX,
        upstream: Callable[[Config], Upstream] | None = None,
        log: Callable[[Config], StreamLog] | None = None,
        client: Callable[[Config], Any] | None = None,
        routes: Collection[str] = frozenset(ROUTES),
        messages: Catalogues | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.hooks = Hooks()
        self._auth = auth
        self._config_prefix = config_prefix
        self._create_upstream = upstream
        self._create_log = log or MemoryLog.from_config
        self._create_client = client
        self._routes = routes
        self._messages = messages
        self._options = options
        self._apps: WeakSet[Quart] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Registers routes, middleware and lifecycle. Raises `ConfigurationError` for what could not work."""
        auth = self._hook()
        config = Config.load(self._options, settings=app.config, prefix=self._config_prefix, environ=os.environ)
        states = app_states(app)
        if self.name in states:
            raise ConfigurationError(f"There is an instance named {self.name!r} in this app; give this one a name.")
        engines = Engines(partial(self._create_relay, app, config))
        states[self.name] = state = AppState(config, self._config_prefix, self._upstreams, engines)
        self._apps.add(app)
        if self._routes:
            app.register_blueprint(
                self.blueprint(self.name, url_prefix=config.url_prefix, auth=auth, routes=self._routes)
            )
        if self._messages:
            app.extensions[CATALOGUES] = merged(self._messages)
        app.register_error_handler(OpenAISSEError, _on_error)
        app.before_request(remember_request_task)
        app.after_serving(engines.aclose)
        _wrap(app, BodyLimit, prefixes=state.prefixes, paths=BODY_PATHS, limit=config.max_body)
        if config.log_responses and not app.extensions.get(_LOGGED):
            app.extensions[_LOGGED] = True
            _wrap(app, StreamLoggingMiddleware, prefixes=_prefixes(app))
            install_filter(app.logger)

    def blueprint(
        self,
        name: str,
        *,
        url_prefix: str,
        auth: Authenticate | None = None,
        models: Collection[str] | None = None,
        routes: Collection[str] = frozenset(ROUTES),
    ) -> Blueprint:
        """Another set of routes to the same streams, with its own auth hook, models and groups of routes."""
        blueprint = create_blueprint(
            name, url_prefix=url_prefix, relay=self._relay, auth=auth or self._hook(), models=models, routes=routes
        )
        blueprint.record(self._registered)
        return blueprint

    # Within a request -------------------------------------------------------------------------------------------

    async def principal(self) -> Principal:
        """Who makes the current request. Raises `AuthenticationRequired` and `OriginDenied`."""
        return await authenticate(self._hook(), trusted_origins=self.config().trusted_origins)

    async def start(
        self,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        thread: str = "",
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
    ) -> Stream:
        """Starts a stream that can be resumed. Refuses here, by raising an `OpenAISSEError`."""
        relay = self._relay()
        handle = await relay.start(
            {**body, "stream": True},
            principal=principal,
            thread=thread,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return Stream(relay, handle)

    async def active(self, *, thread: str, principal: Principal) -> Stream | None:
        """The newest running stream of a thread, to be resumed on a page load; or `None`."""
        relay = self._relay()
        running = relay.running(principal, thread=thread)
        return Stream(relay, running[0].handle) if running else None

    async def complete(
        self, body: Mapping[str, Any], *, principal: Principal, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The assistant's whole message (`role`, `content`, …). Raises what went wrong, as an `OpenAISSEError`."""
        relay = self._relay()
        handle = await relay.start({**body, "stream": False}, principal=principal, retain=False, metadata=metadata)
        answer = json.decode(await read_answer(relay, handle))
        message: dict[str, Any] = answer["choices"][0]["message"]
        return message

    # Hooks ------------------------------------------------------------------------------------------------------

    def model(self, name: str) -> Callable[[ModelT], ModelT]:
        """Registers an async generator function as the model *name*."""

        def register(function: ModelT) -> ModelT:
            self.hooks.app_models[name] = function
            return function

        return register

    def prepare(self, function: PrepareT) -> PrepareT:
        """Registers `(body, principal) -> body`, which may change a request or refuse it by raising."""
        self.hooks.prepare.append(function)
        return function

    def transform(self, function: TransformT) -> TransformT:
        """Registers a `Transform`: an async generator function between what produces a stream and its log."""
        self.hooks.transforms.append(function)
        return function

    def on_end(self, function: OnEndT) -> OnEndT:
        """Registers what is told of every stream's `StreamEnd`, before its readers are; a `def` runs in a thread."""
        self.hooks.on_end.append(function)
        return function

    def observe(self, function: ObserverT) -> ObserverT:
        """Registers an `Observer` of every `StreamEvent`."""
        self.hooks.observers.append(function)
        return function

    # Lifecycle --------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float = 30, *, app: Quart | None = None) -> None:
        """Starts nothing new, lets streams end for *timeout* seconds, ends the rest as failed.

        Await it in the server's shutdown trigger: after the trigger a server cuts its connections.
        """
        apps = [app] if app is not None else list(self._apps)
        relays = [self._state(each).engines.running() for each in apps]
        await asyncio.gather(*(relay.drain(timeout) for relay in relays if relay is not None))

    @contextmanager
    def override(self, app: Quart, *, upstream: Upstream) -> Iterator[None]:
        """For tests: within it, *app* asks this upstream."""
        with self._state(app).engines.override(upstream):
            yield

    def config(self, app: Quart | None = None) -> Config:
        """The configuration in *app*, or in the current one."""
        return self._state(app).config

    def _registered(self, setup: BlueprintSetupState) -> None:
        app = cast(Quart, setup.app)
        for prefixes in (self._state(app).prefixes, _prefixes(app)):
            prefixes.add(setup.url_prefix or "")

    def _hook(self) -> Authenticate:
        if self._auth is None:
            raise ConfigurationError(
                "Say who may call: QuartOpenAISSE(auth=…). To let everybody in, spell out auth=allow_anonymous()."
            )
        return self._auth

    def _create_relay(self, app: Quart, config: Config) -> Relay:
        return Relay(
            config=config,
            log=self._create_log(config),
            upstream=self._upstreams(config),
            hooks=self.hooks,
            instance=self.name,
            scope=app.app_context,
        )

    def _upstreams(self, config: Config) -> Upstreams:
        if self._create_upstream is not None:
            return Upstreams.around(self._create_upstream(config), config)
        client = None if self._create_client is None else self._create_client(config)
        return Upstreams.from_config(config, client=client)

    def _relay(self) -> Relay:
        return self._state().engines.get()

    def _state(self, app: Quart | None = None) -> AppState:
        states = app_states(app or current_app)
        if self.name not in states:
            raise ConfigurationError(f"The instance {self.name!r} is not set up in this app: call init_app first.")
        return states[self.name]


@dataclass(frozen=True)
class AppState:
    """What one instance has in one app."""

    config: Config
    config_prefix: str
    create_upstream: Callable[[Config], Upstream]
    engines: Engines
    prefixes: set[str] = field(default_factory=set)
    """Of its routes."""


def app_states(app: Quart) -> dict[str, AppState]:
    """The instances that are set up in *app*, by their names."""
    states: dict[str, AppState] = app.extensions.setdefault(_EXTENSION, {})
    return states


def _wrap(app: Quart, middleware: Callable[..., Any], **options: Any) -> None:
    app.asgi_app = middleware(app.asgi_app, **options)  # type: ignore[method-assign]


def _prefixes(app: Quart) -> set[str]:
    """The prefixes of all instances in *app*."""
    prefixes: set[str] = app.extensions.setdefault(f"{_EXTENSION}.prefixes", set())
    return prefixes


async def _on_error(error: OpenAISSEError) -> Response:
    """An error of ours that a view of the app's own let through."""
    return error_response(error)
