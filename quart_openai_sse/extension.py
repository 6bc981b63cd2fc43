"""The extension: its configuration, its lifecycle, and the methods that an app uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack, cast
from weakref import WeakSet

from quart import Blueprint, Quart, current_app, request
from quart.blueprints import BlueprintSetupState

from quart_openai_sse.auth.authentication import Authenticate, authenticate
from quart_openai_sse.auth.in_process import admit
from quart_openai_sse.config import KEY_PREFIX, Config, Options, option_names, refuse_unknown
from quart_openai_sse.errors import ConfigurationError, OpenAISSEError
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.principal import Principal
from quart_openai_sse.protocol.requests import check_thread
from quart_openai_sse.relay.counts import CreateCounts, counts_of
from quart_openai_sse.relay.engines import Engines
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.relay.stored_requests import check_metadata
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.web import checks
from quart_openai_sse.web.blueprint import BODY_PATHS, ROUTES, create_blueprint
from quart_openai_sse.web.bodies import read_json, with_own_limit
from quart_openai_sse.web.event_stream import remember_request_task
from quart_openai_sse.web.in_process import InProcessTransport
from quart_openai_sse.web.language import CATALOGUES, Catalogues, merged
from quart_openai_sse.web.middleware import BodyLimit, LeftClients, StreamLoggingMiddleware, add_trace_ids
from quart_openai_sse.web.registration import Registration
from quart_openai_sse.web.responses import read_message, respond_to_error
from quart_openai_sse.web.state import (
    EXTENSION,
    AppState,
    Factories,
    app_prefixes,
    app_state,
    app_states,
    current_relay,
)
from quart_openai_sse.web.stream import Stream
from quart_openai_sse.web.writes import CutOff

_ARGUMENTS = ("auth", "name", "config_prefix", "upstream", "log", "counts", "client", "routes", "translations")
_LOGGED = f"{EXTENSION}.logged"
_GRACE = 2.0  # seconds


class QuartOpenAISSE(Registration):
    """OpenAI-compatible streaming routes for a Quart app, and streams for the app's own routes.

    *auth* is the auth hook, which says who makes a request. *routes* are the groups of routes that the app gets.
    *upstream*, *log*, *counts* and *client* are functions that are given the `Config` and return an upstream, a stream
    log, what counts the limits of a principal for all workers, or the HTTP client for requests upstream; each is called
    once per app and event loop. *log* may be the address of a log as well, like the option `log`; then *counts* is not
    needed. Several instances in one app need a *name* and a *config_prefix* each, and no prefix may begin with another
    one. *translations* add languages to the sentences that people read: by language, from the English sentence to its
    translation. *options* are the fields of `Config`; they take precedence over `app.config`.
    """

    def __init__(
        self,
        app: Quart | None = None,
        *,
        auth: Authenticate | None = None,
        name: str = "openai_sse",
        config_prefix: str = KEY_PREFIX,
        upstream: Callable[[Config], Upstream] | None = None,
        log: str | Callable[[Config], StreamLog] | None = None,
        counts: CreateCounts | None = None,
        client: Callable[[Config], Any] | None = None,
        routes: Collection[str] = frozenset(ROUTES),
        translations: Catalogues | None = None,
        **options: Unpack[Options],
    ) -> None:
        refuse_unknown("Unknown options", options, known=[*option_names(), *_ARGUMENTS])
        checks.check_collection("routes", routes)
        checks.check_auth(auth)
        super().__init__()
        self.name = name
        self._auth = None if auth is None else admit(auth, name)
        self._config_prefix = config_prefix
        if isinstance(log, str):
            options, log = cast(Options, {**options, "log": log}), None
        self._factories = Factories(upstream=upstream, log=log, counts=counts, client=client)
        self._routes = routes
        self._translations = translations
        self._options = options
        self._apps: WeakSet[Quart] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Registers the routes, the middleware and what happens when the app ends.

        If the app has a `request_class` of its own, set it before: it is replaced with a subclass that lets `max_body`
        be larger than Quart's `MAX_CONTENT_LENGTH`. With a class that is set later, Quart's limit holds as well.

        Raises `ConfigurationError` for an invalid configuration, and `TypeError` if *app* is not a Quart app. A missing
        key for OpenAI is the same error when the server starts, unless the app has models of its own by then.
        """
        checks.check_app(app)
        self._hook()
        config = Config.load(self._options, settings=app.config, prefix=self._config_prefix, environ=os.environ)
        config = self._factories.check_log(config, self._config_prefix, app)
        states = app_states(app)
        if self.name in states:
            raise ConfigurationError(f"This app already has an instance named {self.name!r}: pass another name=.")
        engines = Engines(partial(self._create_relay, app, config))
        states[self.name] = state = AppState(config, self._config_prefix, self._factories, engines)
        self._apps.add(app)
        if self._routes:
            blueprint = self.blueprint(self.name, url_prefix=config.url_prefix, routes=self._routes)
            app.register_blueprint(blueprint)
        if self._translations:
            app.extensions[CATALOGUES] = merged(self._translations)
        app.register_error_handler(OpenAISSEError, respond_to_error)
        app.before_request(remember_request_task)
        app.before_serving(partial(self._check_start, state))
        app.before_serving(engines.open)
        app.after_serving(engines.aclose)
        _wrap(app, CutOff)
        app.request_class = with_own_limit(app.request_class)
        _wrap(app, BodyLimit, prefixes=state.prefixes, paths=BODY_PATHS, limit=config.max_body)
        if config.log_responses and not app.extensions.get(_LOGGED):
            app.extensions[_LOGGED] = True
            _wrap(app, StreamLoggingMiddleware, prefixes=app_prefixes(app))
            add_trace_ids(app.logger)
        if not config.log_responses:
            _wrap(app, LeftClients)

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
        checks.check_collection("models", models)
        checks.check_collection("routes", routes)
        checks.check_auth(auth)
        blueprint = create_blueprint(
            name,
            url_prefix=url_prefix,
            relay=partial(current_relay, self.name),
            auth=self._hook() if auth is None else admit(auth, self.name),
            formats=self._formats,
            models=models,
            routes=routes,
        )
        blueprint.record(self._registered)
        return blueprint

    # Within a request -------------------------------------------------------------------------------------------

    async def principal(self) -> Principal:
        """The principal that makes the current request, or opens the current websocket.

        Raises what the auth hook raises, `AuthenticationRequired`, `PermissionDenied`, `AuthUnavailable`, and
        `OriginDenied` if a page of another origin uses a cookie. In a websocket's view, call it before the websocket is
        accepted: the error is then the response to the handshake, on a server that can send one.
        """
        relay = current_relay(self.name)
        origins = relay.config.trusted_origins
        return await authenticate(self._hook(), trusted_origins=origins, calls=relay.hook_calls.auth)

    async def body(self) -> dict[str, Any]:
        """The JSON object in the current request's body, read and checked as by the extension's own routes.

        Raises `RequestTooLarge` beyond `max_body`, and also beyond Quart's `MAX_CONTENT_LENGTH`, which is the limit of
        every route of the app; `RequestTooSlow` after Quart's `BODY_TIMEOUT`, `UnsupportedMediaType` unless it is
        `application/json`, `InvalidRequest` unless it is a JSON object, and `MemoryFull` beyond `max_memory`.
        """
        body, _ = await read_json(current_relay(self.name), limit=request.max_content_length)
        return body

    async def start(
        self,
        body: Mapping[str, Any],
        *,
        principal: Principal,
        thread: str = "",
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
    ) -> Stream:
        """Starts a stream that can be resumed, for a Chat Completions request *body*.

        Every refusal is raised here, as an `OpenAISSEError`. *body* and *thread* are checked like those of a caller.
        On a log that workers share, *metadata* must be JSON, since `on_end` may be called on another worker: raises
        `TypeError` otherwise.
        """
        relay = current_relay(self.name)
        if metadata and relay.log.shared:
            check_metadata(metadata)
        asked = {**body, "stream": True}
        handle = await relay.start(
            asked,
            principal=principal,
            thread=check_thread(thread or None),
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return Stream.started(relay, handle, self._formats)

    async def active(self, *, thread: str, principal: Principal) -> Stream | None:
        """The newest running stream of a thread, for a page that is loaded again; or `None`."""
        relay = current_relay(self.name)
        running = await relay.find(principal, thread=thread)
        return Stream(relay, relay.handle(running[0].id, principal), self._formats) if running else None

    async def forget(self, principal: Principal) -> None:
        """Stops the principal's running streams, and removes all that is kept of its streams, on every worker.

        From then on they are `StreamExpired` (410). Returns when all is removed, except for what the app's own hooks
        have stored. Raises `LogUnavailable` if that is not possible now; it can be called again. Raises
        `InvalidRequest` for an anonymous principal.
        """
        await current_relay(self.name).forget(principal)

    async def complete(
        self, body: Mapping[str, Any], *, principal: Principal, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The assistant's whole message (`role`, `content`, …). Raises an `OpenAISSEError` if the stream fails."""
        relay = current_relay(self.name)
        handle = await relay.start({**body, "stream": False}, principal=principal, retain=False, metadata=metadata)
        return await read_message(relay, handle)

    def transport(self, *, principal: Principal, app: Quart | None = None) -> Any:
        """A transport with which a library's client asks the extension's own routes of this app, as *principal*.

        It is for `httpx.AsyncClient(transport=...)` and for `httpx2.AsyncClient(transport=...)`. The path of the
        client's `base_url` chooses the route; its host is not contacted. Requests are those of *principal*: no auth
        hook is asked, and the credentials that the library sends are ignored. Outside of a request, a model or a hook
        of the app, pass *app*. Raises `TypeError` unless *principal* is a `Principal`, and `ConfigurationError` if the
        extension does not know the app.
        """
        checks.check_principal(principal)
        state = app_state(self.name, app)
        found = app if app is not None else current_app._get_current_object()
        return InProcessTransport(found, principal=principal, instance=self.name, prefixes=state.prefixes)

    # Lifecycle --------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float = 30, *, grace: float | None = None, app: Quart | None = None) -> None:
        """Waits up to *timeout* seconds for running streams, and then ends the others as failed.

        `/ready` is 503 from now on. During the first *grace* seconds new streams still start, since a proxy sends
        requests until it has noticed; after them new streams are refused. *grace* is at most *timeout*, and by default
        2 seconds, or half of a *timeout* below 4. It also passes if no stream runs; with 0, the drain of an idle app
        ends at once.

        Await it in the server's shutdown trigger: after the trigger a server closes its connections.
        """
        grace = min(_GRACE, timeout / 2) if grace is None else min(grace, timeout)
        apps = [app] if app is not None else list(self._apps)
        relays = [app_state(self.name, each).engines.current() for each in apps]
        await asyncio.gather(*(relay.drain(timeout, grace=grace) for relay in relays if relay is not None))

    @contextmanager
    def override(self, app: Quart, *, upstream: Upstream) -> Iterator[None]:
        """For tests: within the block, *app* asks this upstream."""
        with app_state(self.name, app).engines.override(upstream):
            yield

    def config(self, app: Quart | None = None) -> Config:
        """The configuration in *app*, or in the current one."""
        return app_state(self.name, app).config

    def _registered(self, setup: BlueprintSetupState) -> None:
        app = cast(Quart, setup.app)
        for prefixes in (app_state(self.name, app).prefixes, app_prefixes(app)):
            prefixes.add((setup.url_prefix or "").rstrip("/"))  # as Quart does

    def _hook(self) -> Authenticate:
        if self._auth is None:
            raise ConfigurationError(
                "QuartOpenAISSE needs an auth hook, for example auth=session_user(). "
                "To let everybody in, write auth=allow_anonymous()."
            )
        return self._auth

    async def _check_start(self, state: AppState) -> None:
        """Keeps the server from starting if it could not answer."""
        checks.check_server()
        if not self.hooks.app_models and not state.engines.overridden:
            state.factories.check_key(state.config, state.config_prefix)

    def _create_relay(self, app: Quart, config: Config) -> Relay:
        return Relay(
            config=config,
            log=self._factories.create_log(config),
            create_upstream=partial(self._factories.create_upstreams, config),
            hooks=self.hooks,
            instance=self.name,
            counts=counts_of(config, own=self._factories.counts, own_log=self._factories.log is not None),
            scope=app.app_context,
        )


def _wrap(app: Quart, middleware: Callable[..., Any], **options: Any) -> None:
    app.asgi_app = middleware(app.asgi_app, **options)  # type: ignore[method-assign]
