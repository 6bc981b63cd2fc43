"""Every option, once: its name, type, default and meaning. Keys and the docs' table derive from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, get_args, get_type_hints
from urllib.parse import SplitResult, urlsplit

import msgspec

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal

ApiKey = Callable[[Principal], Awaitable[str]]
"""A coroutine function that gives the upstream's key for a principal: keys that rotate, or one per customer."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

OPENAI_BASE_URL = "https://api.openai.com/v1"
KEY_PREFIX = "OPENAI_SSE_"

TEST_DEFAULTS: dict[str, Any] = {}
"""Options with another default while tests run, set by the pytest plugin. Values that the app sets take precedence."""


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of several upstreams. Those of the lowest `priority` are asked first, by `weight` among equals.

    The key and what else is sent with it falls back to the options of that name for the origin of `base_url` only.
    """

    base_url: str
    name: str = ""
    """What the record calls it; by default its host."""
    api_key: str | None = None
    api_keys: tuple[str, ...] | None = None
    api_key_header: str | None = None
    organization: str | None = None
    project: str | None = None
    headers: dict[str, str] | None = None
    models: frozenset[str] | None = None
    """The models it has; `None`: all."""
    aliases: dict[str, str] = {}
    """What it calls a model that goes by another name here."""
    priority: int | None = None
    """By default its place in the list: each is a fallback of those before it."""
    weight: Count = 1

    def __repr__(self) -> str:
        return f"UpstreamConfig({self.name or self.base_url!r})"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one instance. Times are seconds, sizes are bytes."""

    api_key: str | ApiKey | None = field(default=None, repr=False)
    """The upstream's key, or a coroutine function that is given the `Principal` and returns it.
    Falls back to `OPENAI_API_KEY`."""
    base_url: str = OPENAI_BASE_URL
    """The upstream's address, up to and with `/v1`. Falls back to `OPENAI_BASE_URL`."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Several keys instead of one: the next is taken when the upstream refuses one with 401, 403 or 429."""
    api_key_header: str = "Authorization"
    """The header that carries the key: `Authorization` (as a bearer token) or, for Azure, `api-key`."""
    organization: str = ""
    """Sent upstream as `OpenAI-Organization`."""
    project: str = ""
    """Sent upstream as `OpenAI-Project`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further headers of every request upstream."""

    model: str = ""
    """The model of a request that names none."""
    models: tuple[str, ...] | None = None
    """The upstream's models that may be asked for (a list, or names with commas); `None` allows all."""
    include_usage: bool = True
    """Whether usage is asked of the upstream; switch it off for a server that refuses `stream_options`."""

    connect_timeout: Seconds = 3
    """Seconds to connect to the upstream."""
    first_output_timeout: Seconds = 60
    """Seconds from the request to the first real output; empty deltas do not count."""
    gap_timeout: Seconds = 30
    """Seconds without a byte of the upstream in the middle of a stream; its comments count as bytes."""
    total_timeout: Seconds = 600
    """Seconds for one whole answer of the upstream."""
    first_output_timeouts: Mapping[str, Seconds] = field(default_factory=dict)
    """The same for single models, by name: for those that think for long before they say anything."""
    gap_timeouts: Mapping[str, Seconds] = field(default_factory=dict)
    """`gap_timeout` for single models."""

    retries: Annotated[int, msgspec.Meta(ge=0)] = 3
    """How often a request that failed before any output is sent to the same upstream again."""
    retry_delay: Seconds = 1
    """Seconds before the first retry; each later one waits twice as long."""
    retry_after_max: Seconds = 20
    """Seconds an upstream may make us wait by `Retry-After`; if it asks for longer, the caller is told instead."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Several upstreams instead of the one at `base_url`: what is left out is as for that one."""
    breaker_failures: Count = 5
    """Failures in a row after which an upstream is not asked, while there are others."""
    breaker_reset: Seconds = 15
    """Seconds after which it is asked again, by one request at first."""
    slow_first_output: Seconds | None = None
    """Seconds without output that count as a failure to that; `None`: they do not."""

    max_connections: Count = 1000
    """Connections to the upstream, in all."""
    max_keepalive_connections: Count = 100
    """Idle connections to the upstream that are kept."""
    keepalive_expiry: Seconds = 60
    """Seconds after which an idle connection to the upstream is closed."""
    trust_env: bool = False
    """Whether the upstream is reached through the proxies named in the environment (`HTTPS_PROXY` …)."""
    own_transport: bool = True
    """Whether requests upstream go over our own transport, which streams cheaply, or over httpx's.
    Through a proxy it is httpx's in any case."""

    url_prefix: str = "/v1"
    """Where the default blueprint's routes are."""
    max_body: Count = 4 << 20
    """Bytes of a request's body."""
    trusted_origins: tuple[str, ...] = ()
    """Other origins (`https://app.example`) whose pages may use a visitor's cookie."""
    log_responses: bool = True
    """Whether the middleware is installed: a trace id per request, a log line per response of ours."""

    commit_after: Seconds = 10
    """Seconds without output after which the 200 is sent; a failure before it has its true status."""
    keepalive: Seconds = 15
    """Seconds of silence after which, at the latest, a comment is sent."""
    retry: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """SSE's reconnection time, in milliseconds, told to readers of `/streams`."""

    linger: Seconds = 30
    """Seconds a stream that can be resumed goes on with nobody reading it, or nobody yet."""
    retention: Seconds = 300
    """Seconds a stream can be read after its end."""
    tombstone: Seconds = 3600
    """Seconds after that in which it is answered 410, not 404."""

    max_streams: Count = 1000
    """Running streams in all."""
    max_streams_per_principal: Count = 20
    """Running streams of one principal (anonymous callers share the limit of all)."""
    tokens_per_principal: Count | None = None
    """Tokens a principal may use in each window, prompts included; `None`: no limit. They are counted while a stream
    runs, by its `usage` or else by its chunks, and a stream that goes beyond fails. Known to one process."""
    token_window: Seconds = 3600
    """Seconds of such a window, from a principal's first token."""
    max_event: Count = 1 << 20
    """Bytes of one event of the upstream."""
    max_entries: Count = 200_000
    """Entries of a stream that can be resumed."""
    max_bytes: Count = 16 << 20
    """Bytes of a stream that can be resumed, of an answer in one piece, of chunks that are added up to a message."""
    max_log_bytes: Count = 512 << 20
    """Bytes of all streams in the log of one process; ended ones are given up first."""
    high_water: Count = 256 << 10
    """Unread bytes at which the upstream of a stream that can't be resumed is paused."""
    max_duration: Seconds = 3600
    """Seconds any stream may run, whatever produces it."""
    on_end_timeout: Seconds = 5
    """Seconds readers wait for `on_end` before they see the end."""

    @classmethod
    def load(
        cls,
        options: Mapping[str, Any],
        *,
        settings: Mapping[str, Any],
        prefix: str,
        environ: Mapping[str, str],
    ) -> Config:
        """*options* over the keys of *settings* that begin with *prefix*, over the defaults.

        The key and the address of the upstream fall back to `OPENAI_API_KEY` and `OPENAI_BASE_URL` of *environ*.
        Raises `ConfigurationError`, which names the key and never its value.
        """
        names = {each.name for each in fields(cls)}
        keyed = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        if unknown := [prefix + key for key in keyed if key.lower() not in names or not key.isupper()]:
            raise ConfigurationError(f"Unknown configuration: {', '.join(sorted(unknown))}.")
        if unknown := sorted(options.keys() - names):
            raise ConfigurationError(f"Unknown options: {', '.join(unknown)}.")
        values = TEST_DEFAULTS | {key.lower(): value for key, value in keyed.items()} | dict(options)
        for name in ("api_key", "base_url"):
            if not values.get(name) and environ.get(f"OPENAI_{name.upper()}"):
                values[name] = environ[f"OPENAI_{name.upper()}"]
        config = cls(**{name: _convert(name, value, prefix) for name, value in values.items()})
        config.check(prefix)
        return config

    def of(self, upstream: UpstreamConfig) -> Config:
        """The configuration of one of `upstreams`, as if it were the only one."""
        # No key goes to a stranger: what is sent along is another server's affair.
        same = _origin(upstream.base_url) == _origin(self.base_url)
        sent: dict[str, Any] = {name: getattr(self if same else _NOTHING_SENT, name) for name in _SENT}
        given = {name: value for name in _SENT if (value := getattr(upstream, name)) is not None}
        if "api_key" in given or "api_keys" in given:
            sent |= {"api_key": None, "api_keys": ()}
        return replace(self, upstreams=(), base_url=upstream.base_url, **(sent | given))

    def check(self, prefix: str = KEY_PREFIX) -> None:
        """Raises `ConfigurationError` for what could not work."""
        for each in self.upstreams:
            self.of(each).check(f"{prefix}UPSTREAMS: ")
        address = _address(self.base_url)
        if address is None:
            raise ConfigurationError(f"{prefix}BASE_URL must be an http or https address.")
        if "@" in address.netloc:
            raise ConfigurationError(f"{prefix}BASE_URL must not hold credentials; use {prefix}API_KEY.")
        if not self.upstreams and not (self.api_key or self.api_keys) and address.hostname == "api.openai.com":
            raise ConfigurationError(f"OpenAI needs a key: set {prefix}API_KEY or OPENAI_API_KEY.")
        for name, values in self._sent().items():
            if not all(value.isascii() and value.isprintable() for value in values):
                raise ConfigurationError(f"{prefix}{name.upper()} holds characters that no header can carry.")
        if not _FRAMING.isdisjoint(map(str.lower, self.headers)):
            raise ConfigurationError(f"{prefix}HEADERS must not hold any of {', '.join(sorted(_FRAMING))}.")
        if self.url_prefix and (not self.url_prefix.startswith("/") or self.url_prefix.endswith("/")):
            raise ConfigurationError(f'{prefix}URL_PREFIX must begin with "/" and not end with it.')

    def _sent(self) -> dict[str, tuple[str, ...]]:
        """What becomes headers of the requests upstream, by the option it comes from."""
        return {
            "api_key": (self.api_key,) if isinstance(self.api_key, str) else (),
            "api_keys": self.api_keys,
            "api_key_header": (self.api_key_header,),
            "organization": (self.organization,),
            "project": (self.project,),
            "headers": (*self.headers, *self.headers.values()),
        }


_SENT = ("api_key", "api_keys", "api_key_header", "organization", "project", "headers")
_NOTHING_SENT = Config()
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    address = _address(url)
    return None if address is None else (address.scheme, address.hostname, address.port)


def _address(url: str) -> SplitResult | None:
    """The parts of an http or https address, or `None` if *url* is none."""
    try:
        address = urlsplit(url)
        valid = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # it would quote a part of the address
        return None
    return address if valid and not any(map(str.isspace, url)) else None


def _convert(name: str, value: Any, prefix: str) -> Any:
    if name == "api_key":
        if value is None or isinstance(value, str) or callable(value):
            return value
        raise ConfigurationError(f"{prefix}API_KEY must be a string or a coroutine function.")
    hint = _HINTS[name]
    if isinstance(value, str) and tuple[str, ...] in (hint, *get_args(hint)):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    try:
        return msgspec.convert(value, hint, strict=False)
    except UnicodeEncodeError:  # a variable of the environment whose bytes are not UTF-8
        raise ConfigurationError(f"{prefix}{name.upper()} is not text.") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{prefix}{name.upper()}: {error}.") from None


_HINTS = {name: hint for name, hint in get_type_hints(Config, include_extras=True).items() if name != "api_key"}
