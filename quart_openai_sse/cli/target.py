"""Whom the commands ask: the upstream of the environment or of an app, and where each setting comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from quart import Quart
from quart.cli import ScriptInfo

from quart_openai_sse.config import KEY_PREFIX, Config
from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.producers.upstream_stream import streaming_body
from quart_openai_sse.protocol.completion import Completion
from quart_openai_sse.upstreams import Headers, Upstream
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.web.state import AppState, app_states

PREFIX = f"QUART_{KEY_PREFIX}"  # as Quart's from_prefixed_env() reads it
ME = Principal("quart-openai-sse", realm="cli")

_NOT_FOR_CHAT = re.compile(r"embed|whisper|tts|dall-e|image|audio|moderation|realtime|transcribe|rerank|sora|search")

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def target_options(command: CommandT) -> CommandT:
    """The options that say whom to ask."""
    for option in (
        click.option(
            "--app",
            metavar="MODULE:APP",
            help="Ask what this app would ask: its configuration, its HTTP client. Else the environment says.",
        ),
        click.option("--model", metavar="NAME", help="The model.  [else OPENAI_MODEL, or one of the upstream's list]"),
        click.option(
            "--api-key-env",
            metavar="VARIABLE",
            help="The environment variable that holds the key; a key itself is never an argument, where others could "
            "see it.  [else OPENAI_API_KEY]",
        ),
        click.option(
            "--base-url",
            metavar="URL",
            help="The address, up to and with /v1.  [else OPENAI_BASE_URL, or OpenAI's own]",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Setting:
    """A value, and where it comes from."""

    value: str
    origin: str

    def __bool__(self) -> bool:
        return bool(self.value)


class WatchingSink(ChunkSink):
    """A `ChunkSink` that remembers how the answer came."""

    status = 0
    headers: Headers = {}
    reads = 0
    marked = True
    """Whether `[DONE]` was the end."""

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink.head`."""
        self.status, self.headers = status, headers
        super().head(status, headers)

    def feed(self, data: bytes) -> bool:
        """See `Sink.feed`."""
        self.reads += 1
        return super().feed(data)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self.marked = self._completion.done
        super().finish()


@dataclass(frozen=True)
class Target:
    """One upstream with its configuration."""

    config: Config
    create: Callable[[], Upstream]
    base_url: Setting
    """As it may be shown: without its query."""
    key: Setting
    """Its value is never shown."""
    model: Setting
    prefix: str
    """What the keys of the configuration begin with, where they are set."""
    name: str = ""
    """The instance's, where the app has several."""
    app: Quart | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Upstream]:
        """The upstream, in the app's context if there is an app."""
        if self.app is not None:
            async with self.app.app_context(), replace(self, app=None).open() as upstream:
                yield upstream
            return
        upstream = self.create()
        try:
            yield upstream
        finally:
            await upstream.aclose()

    def sink(self, take: Callable[[list[Entry]], bool]) -> tuple[WatchingSink, Completion]:
        """What an answer is fed to; *take* is given what each read brought."""

        async def room() -> None:
            """There always is."""

        completion = Completion()
        return WatchingSink(completion, take=take, room=room, max_event=self.config.max_event), completion

    def body(self, model: str, messages: list[dict[str, Any]], **members: Any) -> Mapping[str, Any]:
        """A request as the package would send it."""
        body = {**members, "model": model, "messages": messages}
        return streaming_body(body, include_usage=self.config.include_usage)


def likely_model(names: list[str]) -> str:
    """The first of *names* that looks like one to chat with, or ""."""
    return next((name for name in names if not _NOT_FOR_CHAT.search(name.lower())), "")


# Where the settings come from ---------------------------------------------------------------------------------------


def find_targets(
    context: click.Context,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    model: str | None = None,
    app: str | None = None,
) -> list[Target]:
    """The upstreams to ask: one, unless an app has several instances. Raises `click.UsageError`."""
    options: dict[str, str] = {}
    if base_url is not None:
        options["base_url"] = base_url
    if api_key_env is not None:
        if not os.environ.get(api_key_env):
            raise click.UsageError(f"The environment variable {api_key_env} is not set.")
        options["api_key"] = os.environ[api_key_env]
    try:
        loaded = _load_app(context, app)
        targets = [_of_environment(options)] if loaded is None else _of_app(loaded, options)
    except OpenAISSEError as error:  # most of all ConfigurationError
        raise click.UsageError(error.message) from None
    if api_key_env is not None:
        targets = [replace(each, key=Setting("set", api_key_env)) for each in targets]
    if model is not None:
        targets = [replace(each, model=Setting(model, "--model")) for each in targets]
    return targets


def _load_app(context: click.Context, path: str | None) -> Quart | None:
    """The app of *path*; or the one that `quart` finds, if the command is one of `quart`'s."""
    info = context.find_object(ScriptInfo)
    if path is not None:
        info = ScriptInfo(path, set_debug_flag=False)
    elif info is None or not (info.app_import_path or info.create_app or Path("app.py").is_file()):
        return None
    return info.load_app()


def _of_app(app: Quart, options: Mapping[str, str]) -> list[Target]:
    states = app_states(app)
    if not states:
        raise click.UsageError(f"The app {app.name!r} does not use quart-openai-sse: there is no init_app for it.")
    return [_of_state(app, name if len(states) > 1 else "", state, options) for name, state in states.items()]


def _of_state(app: Quart, name: str, state: AppState, options: Mapping[str, Any]) -> Target:
    config, theirs = replace(state.config, retries=0), "the app"
    create: Callable[[], Upstream] = partial(state.create_upstream, config)
    if options:
        config = replace(config, **options)
        config.check()
        create = partial(OpenAIUpstream, config)
    return Target(
        config=config,
        create=create,
        base_url=Setting(_shown(config.base_url), "--base-url" if "base_url" in options else theirs),
        key=Setting("set" if config.api_key else "", theirs),
        model=_model(config, theirs),
        prefix=state.config_prefix,
        name=name,
        app=app,
    )


def _of_environment(options: Mapping[str, str]) -> Target:
    settings = {name: _parsed(value) for name, value in os.environ.items() if name.startswith(PREFIX)}
    config = Config.load(options, settings=settings, prefix=PREFIX, environ=os.environ)
    address = "--base-url" if "base_url" in options else _variable("BASE_URL") or "the default"
    return Target(
        config=config,
        create=lambda: OpenAIUpstream(config),
        base_url=Setting(_shown(config.base_url), address),
        key=Setting("set" if config.api_key else "", _variable("API_KEY")),
        model=_model(config, f"{PREFIX}MODEL"),
        prefix=PREFIX,
    )


def _shown(url: str) -> str:
    """An address without its query, which some servers take a key in."""
    return url.partition("?")[0]


def _variable(name: str) -> str:
    return next((each for each in (PREFIX + name, f"OPENAI_{name}") if os.environ.get(each)), "")


def _parsed(value: str) -> Any:
    """As Quart's `from_prefixed_env` reads it: JSON, or else text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _model(config: Config, origin: str) -> Setting:
    if config.model:
        return Setting(config.model, origin)
    if name := os.environ.get("OPENAI_MODEL", ""):
        return Setting(name, "OPENAI_MODEL")
    if config.models:
        return Setting(config.models[0], "the first of the configured models")
    return Setting("", "")
