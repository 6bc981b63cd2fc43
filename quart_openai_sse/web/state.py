"""The state of an instance in an app, and the factories of its upstream, stream log and HTTP client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from quart import Quart, current_app

from quart_openai_sse.config import Config
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.logs import StreamLog
from quart_openai_sse.logs.addresses import check_address, kind_of
from quart_openai_sse.logs.memory import MemoryLog
from quart_openai_sse.relay.counts import CreateCounts
from quart_openai_sse.relay.engines import Engines
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.upstreams import Upstream
from quart_openai_sse.upstreams.several import Upstreams
from quart_openai_sse.web.checks import check_factory

EXTENSION = "quart_openai_sse"
"""The key in `app.extensions`, and the beginning of others."""


@dataclass(frozen=True, kw_only=True)
class Factories:
    """The functions that create an instance's upstream, log, counts and HTTP client, once per app and event loop."""

    upstream: Callable[[Config], Upstream] | None
    log: Callable[[Config], StreamLog] | None
    counts: CreateCounts | None
    client: Callable[[Config], Any] | None

    def __post_init__(self) -> None:
        for name in ("upstream", "log", "counts", "client"):
            check_factory(name, getattr(self, name))

    def create_upstreams(self, config: Config) -> Upstreams:
        """The upstreams that *config* describes, or the app's own upstream."""
        if self.upstream is not None:
            return Upstreams.around(self.upstream(config), config)
        return Upstreams.from_config(config, client=None if self.client is None else self.client(config))

    def check_key(self, config: Config, prefix: str) -> None:
        """Raises `ConfigurationError` if the upstream that *config* describes needs a key and has none."""
        if self.upstream is None:
            config.check_key(prefix)

    def check_log(self, config: Config, prefix: str, app: Quart) -> Config:
        """*config* with the address of a log that *app* can use. Raises `ConfigurationError`."""
        if self.log is not None:
            return config
        return replace(config, log=check_address(config.log, instance_path=app.instance_path, key=f"{prefix}LOG"))

    def create_log(self, config: Config) -> StreamLog:
        """The app's own stream log, or the one that *config* names: by default in memory."""
        if self.log is not None:
            return self.log(config)
        # Imported here, because only one of them is needed, and Redis's client is an extra.
        kind = kind_of(config.log)
        if kind == "redis":
            from quart_openai_sse.logs.mirror.redis import redis_log

            return redis_log(config)
        if kind == "sqlite":
            from quart_openai_sse.logs.mirror.sqlite import sqlite_log

            return sqlite_log(config)
        return MemoryLog.from_config(config)


@dataclass(frozen=True)
class AppState:
    """The state of one instance in one app."""

    config: Config
    config_prefix: str
    factories: Factories
    engines: Engines
    prefixes: set[str] = field(default_factory=set)
    """The prefixes of its routes."""


def app_states(app: Quart) -> dict[str, AppState]:
    """The instances that are set up in *app*, by their names."""
    states: dict[str, AppState] = app.extensions.setdefault(EXTENSION, {})
    return states


def app_state(name: str, app: Quart | None = None) -> AppState:
    """The state of the instance *name* in *app*, or in the current app. Raises `ConfigurationError`."""
    try:
        state: AppState = (app or current_app).extensions[EXTENSION][name]
        return state
    except KeyError:
        raise ConfigurationError(f"The instance {name!r} does not know this app: call init_app(app) first.") from None


def current_relay(name: str) -> Relay:
    """The engine of the instance *name* in the current app."""
    return app_state(name).engines.get()


def app_prefixes(app: Quart) -> set[str]:
    """The prefixes of the routes of all instances in *app*."""
    prefixes: set[str] = app.extensions.setdefault(f"{EXTENSION}.prefixes", set())
    return prefixes
