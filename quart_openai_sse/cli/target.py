"""The upstream that the commands use, from the environment or an app, and the origin of each setting."""

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
from quart_openai_sse.flow import Flow
from quart_openai_sse.logs.entries import Entry
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.access import streaming_body
from quart_openai_sse.producers.chunk_sink import ChunkSink
from quart_openai_sse.protocol.completeness import Completion
from quart_openai_sse.upstreams import Headers, Upstream
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.web.state import AppState, app_states

PREFIX = f"QUART_{KEY_PREFIX}"  # the prefix for Quart's from_prefixed_env()
CLI_PRINCIPAL = Principal("quart-openai-sse", realm="cli")

_NOT_FOR_CHAT = re.compile(r"embed|whisper|tts|dall-e|image|audio|moderation|realtime|transcribe|rerank|sora|search")

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def target_options(command: CommandT) -> CommandT:
    """Adds the options that select the upstream, its key and the model."""
    for option in (
        click.option(
            "--app",
            metavar="MODULE:APP",
            help="Use the configuration and the HTTP client of this app.  [default: the environment]",
        ),
        click.option(
            "--model", metavar="NAME", help="The model.  [default: OPENAI_MODEL, or one of the upstream's list]"
        ),
        click.option(
            "--api-key-env",
            metavar="VARIABLE",
            help="The environment variable that holds the API key. The key itself cannot be an argument, since other "
            "users of the machine could see it.  [default: OPENAI_API_KEY]",
        ),
        click.option(
            "--base-url",
            metavar="URL",
            help="The upstream's address, including /v1.  [default: OPENAI_BASE_URL, or OpenAI's address]",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Setting:
    """The value of an option, and where it was set."""

    value: str
    origin: str
    """The name of an environment variable or option, or a description: "the app"."""

    def __bool__(self) -> bool:
        return bool(self.value)


class WatchingSink(ChunkSink):
    """A `ChunkSink` that records how the response arrived."""

    status = 0
    headers: Headers = {}
    reads = 0
    """The number of reads that brought a part of the body."""
    ended_with_done = True
    """Whether `[DONE]` ended the stream."""

    def head(self, status: int, headers: Headers, *, require_finish_reason: bool = True) -> None:
        """See `Sink.head`."""
        self.status, self.headers = status, headers
        super().head(status, headers, require_finish_reason=require_finish_reason)

    def feed(self, data: bytes) -> Flow:
        """See `Sink.feed`."""
        self.reads += 1
        return super().feed(data)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self.ended_with_done = self._completion.done
        super().finish()


@dataclass(frozen=True)
class Target:
    """An upstream with its configuration."""

    config: Config
    create: Callable[[], Upstream]
    base_url: Setting
    """The address without its query, so that it can be shown."""
    key: Setting
    """The value is only "set", never the key itself."""
    model: Setting
    prefix: str
    """The prefix of the configuration keys."""
    name: str = ""
    """The name of the instance, if the app has several."""
    app: Quart | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Upstream]:
        """Opens the upstream for an `async with` block, within the app's context if there is an app."""
        if self.app is not None:
            async with self.app.app_context(), replace(self, app=None).open() as upstream:
                yield upstream
            return
        upstream = self.create()
        try:
            yield upstream
        finally:
            await upstream.aclose()

    def sink(self, take: Callable[[list[Entry]], Flow]) -> tuple[WatchingSink, Completion]:
        """A sink for a streamed answer, and the answer's state; *take* gets the entries of each read."""

        async def room() -> None:
            """Returns at once: the sink always takes more."""

        completion = Completion()
        sink = WatchingSink(completion, take=take, room=room, max_event=self.config.max_event)
        sink.begin(self.name)
        return sink, completion

    def body(self, model: str, messages: list[dict[str, Any]], **members: Any) -> Mapping[str, Any]:
        """The body of a streamed request, as the extension would send it. *members* are further members."""
        body = {**members, "model": model, "messages": messages}
        return streaming_body(body, self.config)


def likely_model(names: list[str]) -> str:
    """The first of *names* that looks like the name of a chat model; `""` if none does."""
    return next((name for name in names if not _NOT_FOR_CHAT.search(name.lower())), "")


# Reading the settings -----------------------------------------------------------------------------------------------


def find_targets(
    context: click.Context,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    model: str | None = None,
    app: str | None = None,
) -> list[Target]:
    """The upstreams to use: one, unless an app has several instances of the extension.

    Raises `click.UsageError` for an invalid configuration.
    """
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
    except OpenAISSEError as error:  # in most cases a ConfigurationError
        raise click.UsageError(error.message) from None
    if api_key_env is not None:
        targets = [replace(each, key=Setting("set", api_key_env)) for each in targets]
    if model is not None:
        targets = [replace(each, model=Setting(model, "--model")) for each in targets]
    return targets


def _load_app(context: click.Context, path: str | None) -> Quart | None:
    """The app at *path*; without a path, the app that `quart` finds if the command was called as `quart openai-sse`."""
    info = context.find_object(ScriptInfo)
    if path is not None:
        info = ScriptInfo(path, set_debug_flag=False)
    elif info is None or not (info.app_import_path or info.create_app or Path("app.py").is_file()):
        return None
    return info.load_app()


def _of_app(app: Quart, options: Mapping[str, str]) -> list[Target]:
    states = app_states(app)
    if not states:
        raise click.UsageError(f"The app {app.name!r} does not use quart-openai-sse: init_app was not called for it.")
    return [_of_state(app, name if len(states) > 1 else "", state, options) for name, state in states.items()]


def _of_state(app: Quart, name: str, state: AppState, options: Mapping[str, Any]) -> Target:
    config, origin = state.config, "the app"
    create: Callable[[], Upstream] = partial(_the_apps_own, state)
    if options:
        config = replace(config, **options)
        config.check()
        config.check_key()
        create = partial(OpenAIUpstream, config)
    else:
        state.factories.check_key(config, state.config_prefix)
    return Target(
        config=config,
        create=create,
        base_url=Setting(_shown(config.base_url), "--base-url" if "base_url" in options else origin),
        key=Setting("set" if config.api_key else "", origin),
        model=_model(config, origin),
        prefix=state.config_prefix,
        name=name,
        app=app,
    )


def _the_apps_own(state: AppState) -> Upstream:
    """The app's upstream; if there is only one, it is asked without retries, so that its first error is shown."""
    upstreams = state.factories.create_upstreams(state.config)
    return upstreams.candidates[0].upstream if len(upstreams.candidates) == 1 else upstreams


def _of_environment(options: Mapping[str, str]) -> Target:
    settings = {name: _parsed(value) for name, value in os.environ.items() if name.startswith(PREFIX)}
    config = Config.load(options, settings=settings, prefix=PREFIX, environ=os.environ)
    config.check_key(PREFIX)
    address = "--base-url" if "base_url" in options else _variable("BASE_URL") or "the default"
    return Target(
        config=config,
        create=partial(OpenAIUpstream, config),
        base_url=Setting(_shown(config.base_url), address),
        key=Setting("set" if config.api_key else "", _variable("API_KEY")),
        model=_model(config, f"{PREFIX}MODEL"),
        prefix=PREFIX,
    )


def _shown(url: str) -> str:
    """The address without its query, in which some servers expect the key."""
    return url.partition("?")[0]


def _variable(name: str) -> str:
    return next((each for each in (PREFIX + name, f"OPENAI_{name}") if os.environ.get(each)), "")


def _parsed(value: str) -> Any:
    """The value as Quart's `from_prefixed_env` reads it: as JSON if possible, else as text."""
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
