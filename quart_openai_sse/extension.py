"""The extension: configuration, lifecycle, registration, and what an app writes with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakSet

from quart import Blueprint, Quart, Response, current_app
from quart.blueprints import BlueprintSetupState

from quart_openai_sse.auth import Authenticate, authenticate
from quart_openai_sse.blueprint import BODY_PATHS, ROUTES, create_blueprint
from quart_openai_sse.config import KEY_PREFIX, Config, UpstreamConfig
from quart_openai_sse.errors import ConfigurationError, OpenAISSEError
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.messages import Catalogues, merged
from quart_openai_sse.middleware import BodyLimit, StreamLoggingMiddleware
from quart_openai_sse.observers import Observer
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.app_model import ModelFunction
from quart_openai_sse.producers.transforms import Transform
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.trace_context import install_filter
from quart_openai_sse.relay.hooks import Hooks, OnEnd, Prepare
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.responses import CATALOGUES, Stream, error_response, read_answer, remember_request_task
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.breaker import Breaker
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.upstreams.retries import Backoff
from quart_openai_sse.upstreams.several import Candidate, Upstreams

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
        self._create_upstream = upstream or (lambda config: _openai_upstream(config, client))
        self._create_log = log or _memory_log
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
        states = app.extensions.setdefault(_EXTENSION, {})
        if self.name in states:
            raise ConfigurationError(f"There is an instance named {self.name!r} in this app; give this one a name.")
        states[self.name] = state = _AppState(self, app, config)
        self._apps.add(app)
        if self._routes:
            app.register_blueprint(
                self.blueprint(self.name, url_prefix=config.url_prefix, auth=auth, routes=self._routes)
            )
        if self._messages:
            app.extensions[CATALOGUES] = merged(self._messages)
        app.register_error_handler(OpenAISSEError, _on_error)
        app.before_request(remember_request_task)
        app.after_serving(state.after_serving)
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
            self.hooks.models[name] = function
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
        relays = [relay for each in apps for relay in self._state(each).running_relays()]
        if relays:
            await asyncio.gather(*(relay.drain(timeout) for relay in relays))

    @contextmanager
    def override(self, app: Quart, *, upstream: Upstream) -> Iterator[None]:
        """For tests: within it, *app* asks this upstream."""
        with self._state(app).override(upstream):
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

    def _relay(self) -> Relay:
        return self._state().relay()

    def _state(self, app: Quart | None = None) -> _AppState:
        states = (app or current_app).extensions.get(_EXTENSION, {})
        if self.name not in states:
            raise ConfigurationError(f"The instance {self.name!r} is not set up in this app: call init_app first.")
        state: _AppState = states[self.name]
        return state


class _AppState:
    """What one instance has in one app: its configuration, and an engine per event loop, made when first needed."""

    def __init__(self, extension: QuartOpenAISSE, app: Quart, config: Config) -> None:
        self.config = config
        self.prefixes: set[str] = set()
        self._extension = extension
        self._app = app
        self._relays: dict[asyncio.AbstractEventLoop, Relay] = {}
        self._override: Upstream | None = None

    def relay(self) -> Relay:
        """The engine of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._relays:
            for other in [other for other in self._relays if other.is_closed()]:
                del self._relays[other]  # its own futures would keep it for ever
            extension = self._extension
            self._relays[loop] = Relay(
                config=self.config,
                log=extension._create_log(self.config),
                upstream=self._override or self._upstreams(),
                hooks=extension.hooks,
                instance=extension.name,
                scope=self._app.app_context,
            )
        return self._relays[loop]

    def running_relays(self) -> list[Relay]:
        """The engine of the running event loop, if there is one."""
        relay = self._relays.get(asyncio.get_running_loop())
        return [] if relay is None else [relay]

    async def after_serving(self) -> None:
        """Ends what is left. A second start of the same app gets a new engine."""
        for relay in self.running_relays():
            await relay.aclose()  # what comes meanwhile is refused
            del self._relays[asyncio.get_running_loop()]

    @contextmanager
    def override(self, upstream: Upstream) -> Iterator[None]:
        before, self._override = self._override, upstream
        originals = {relay: relay.upstream for relay in self._relays.values()}
        for relay in originals:
            relay.upstream = Upstreams.of(upstream)
        try:
            yield
        finally:
            self._override = before
            for relay in self._relays.values():
                relay.upstream = originals.get(relay) or Upstreams.of(before or self._upstreams())

    def _upstreams(self) -> Upstreams:
        """The upstream of this app; if that is not made of several, it is asked again as the options say."""
        created = self._extension._create_upstream(self.config)
        return created if isinstance(created, Upstreams) else _several([Candidate(upstream=created)], self.config)


def _wrap(app: Quart, middleware: Callable[..., Any], **options: Any) -> None:
    app.asgi_app = middleware(app.asgi_app, **options)  # type: ignore[method-assign]


def _prefixes(app: Quart) -> set[str]:
    """The prefixes of all instances in *app*."""
    prefixes: set[str] = app.extensions.setdefault(f"{_EXTENSION}.prefixes", set())
    return prefixes


def _openai_upstream(config: Config, client: Callable[[Config], Any] | None) -> Upstream:
    """The upstream of the options, or several as one; a client of the app's own is shared by all."""
    shared = None if client is None else client(config)
    if not config.upstreams:
        return OpenAIUpstream(config, client=shared)
    return _several([_candidate(config, place, each, shared) for place, each in enumerate(config.upstreams)], config)


def _candidate(config: Config, place: int, each: UpstreamConfig, client: Any) -> Candidate:
    return Candidate(
        upstream=OpenAIUpstream(config.of(each), client=client, name=each.name),
        priority=place if each.priority is None else each.priority,
        weight=each.weight,
        models=each.models,
        aliases=each.aliases,
        breaker=Breaker(failures=config.breaker_failures, reset=config.breaker_reset),
    )


def _several(candidates: list[Candidate], config: Config) -> Upstreams:
    """*candidates* as one, asked as often as the options say."""
    return Upstreams(
        candidates,
        backoff=Backoff(retries=config.retries, delay=config.retry_delay, longest=config.retry_after_max),
        total=config.total_timeout,
        slow=config.slow_first_output,
    )


def _memory_log(config: Config) -> StreamLog:
    return MemoryLog(
        retention=config.retention,
        tombstone=config.tombstone,
        max_entries=config.max_entries,
        max_bytes=config.max_bytes,
        max_log_bytes=config.max_log_bytes,
        high_water=config.high_water,
    )


async def _on_error(error: OpenAISSEError) -> Response:
    """An error of ours that a view of the app's own let through."""
    return error_response(error)
