"""Every option: `Config` has its name, type, default and meaning; `Options` repeats names and types for editors.

The keys in `app.config` and the docs' table derive from `Config`. The two classes are in one file, which is why it has
more than 300 lines: the options and their types stand side by side, and tests/test_config.py compares them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, TypedDict, get_args, get_type_hints
from urllib.parse import SplitResult, urlsplit

import msgspec

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal

ApiKey = Callable[[Principal], Awaitable[str]]
"""A coroutine function that returns the upstream's key for a principal: keys that rotate, or one per customer."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
"""For an option whose docstring says what 0 means."""
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

LogCipher = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
"""Two functions: one encrypts bytes, the other decrypts what the first has returned, or raises."""

Names = str | Sequence[str] | Set[str]
"""Names as an argument: a list or another collection of them, or text with commas."""

OPENAI_BASE_URL = "https://api.openai.com/v1"
KEY_PREFIX = "OPENAI_SSE_"

TEST_DEFAULTS: dict[str, Any] = {}
"""Options with another default while tests run, set by the pytest plugin. Values that the app sets take precedence."""


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of several upstreams. Those with the lowest `priority` are asked first, by `weight` if there are several.

    The key, and everything else that is sent with it, falls back to the option of the same name only if `base_url`
    has the same origin as the option `base_url`.
    """

    base_url: str
    name: str = ""
    """Its name in records and log lines, by default its host; if it is set, also `owned_by` of its models."""
    api_key: str | None = None
    api_keys: tuple[str, ...] | None = None
    api_key_header: str | None = None
    organization: str | None = None
    project: str | None = None
    headers: dict[str, str] | None = None
    models: frozenset[str] | None = None
    """The models it has; `None`: all."""
    aliases: dict[str, str] = {}
    """Its own names for models that have other names here, by the name here."""
    priority: int | None = None
    """By default its position in the list: each upstream is a fallback of those before it."""
    weight: Count = 1
    require_finish_reason: bool | None = None

    def __repr__(self) -> str:
        return f"UpstreamConfig({self.name or self.base_url!r})"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one instance. Times are seconds, sizes are bytes."""

    api_key: str | ApiKey | None = field(default=None, repr=False)
    """The upstream's key, or a coroutine function that is given the `Principal` and returns the key.
    Falls back to `OPENAI_API_KEY`."""
    base_url: str = OPENAI_BASE_URL
    """The upstream's address, up to and including `/v1`. Falls back to `OPENAI_BASE_URL`."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Several keys instead of one: when the upstream refuses a key with 401, 402, 403 or 429, the next one is used."""
    api_key_header: str = "Authorization"
    """The header that carries the key: `Authorization` (as a bearer token) or, for Azure, `api-key`."""
    organization: str = ""
    """Sent upstream as `OpenAI-Organization`."""
    project: str = ""
    """Sent upstream as `OpenAI-Project`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further headers, sent with every request upstream."""

    model: str = ""
    """The model for requests that do not name one."""
    models: tuple[str, ...] | None = None
    """The upstream's models that callers may use (a list, or names separated by commas); `None` allows all."""
    require_finish_reason: bool = True
    """Whether a stream of the upstream is complete only after a `finish_reason`. Switch it off for a server that never
    sends one (Snowflake): then `[DONE]` alone completes a stream, and one that ends without it was cut."""
    allowed_members: tuple[str, ...] | None = None
    """The members that a request may have besides `model`, `messages`, `stream` and `stream_options`, which are always
    allowed; with any other one it is refused with 400, so naming one refuses all that are not named. `None` allows all
    that are not denied. With `*` among them (`*, fallbacks`), all others are allowed as well that are not denied."""
    denied_members: tuple[str, ...] = ()
    """Further members with which a request is refused with 400, for example `n`. Those by which a gateway would send it
    or its log to another server or with other credentials (`api_base`, `extra_headers`, `langfuse_host` and others) are
    refused anyway, unless `allowed_members` names them. What a `prepare` hook adds is not refused."""
    include_usage: bool = True
    """Whether to ask the upstream for usage. Switch it off for a server that refuses `stream_options`."""

    connect_timeout: PositiveSeconds = 3
    """Seconds to connect to the upstream."""
    first_output_timeout: PositiveSeconds = 300
    """Seconds from the request to the first output; empty deltas do not count."""
    first_output_timeouts: Mapping[str, PositiveSeconds] = field(default_factory=dict)
    """`first_output_timeout` for single models, by name: shorter for a model that always answers fast. The app's models
    can be named as well."""
    gap_timeout: PositiveSeconds = 120
    """Seconds without a byte from the upstream in the middle of a stream; its comments count as bytes."""
    gap_timeouts: Mapping[str, PositiveSeconds] = field(default_factory=dict)
    """`gap_timeout` for single models, by name; the app's models can be named as well."""
    total_timeout: PositiveSeconds = 600
    """Seconds for one complete answer of the upstream."""
    model_first_output_timeout: PositiveSeconds = 300
    """Seconds from the request to the first output or event of a model of the app, unless `first_output_timeouts` names
    the model. While the model waits for `chat.call`, the request upstream has its own deadlines, and this one waits."""
    model_gap_timeout: PositiveSeconds = 300
    """Seconds between two items of a model of the app, unless `gap_timeouts` names the model. The time in which the
    model waits for `chat.call`, or for a slow reader, does not count."""
    model_total_timeout: PositiveSeconds = 1800
    """Seconds for one complete answer of a model of the app."""

    retries: Annotated[int, msgspec.Meta(ge=0)] = 3
    """How often a request that failed before any output is sent to the same upstream again."""
    retry_delay: Seconds = 1
    """Seconds before the first retry; each further retry waits twice as long as the one before it. 0: no wait."""
    retry_after_max: Seconds = 20
    """The longest `Retry-After` of an upstream, in seconds, that is waited for. If an upstream asks for more, the
    request is not retried, and the caller receives the error. 0: no `Retry-After` is waited for."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Several upstreams instead of the one at `base_url`: `UpstreamConfig`s, or mappings with their fields."""
    breaker_failures: Count = 5
    """Failures in a row after which an upstream is not asked while there are others."""
    breaker_reset: Seconds = 15
    """Seconds after which such an upstream is asked again, by a single request at first. 0: with the next request."""
    slow_first_output: PositiveSeconds | None = None
    """Seconds without output that count as one of those failures; `None`: a slow upstream is no failure."""

    max_connections: Count = 1000
    """Maximum number of connections to the upstream."""
    max_keepalive_connections: Count = 100
    """Maximum number of idle connections to the upstream that are kept open."""
    keepalive_expiry: Seconds = 60
    """Seconds after which an idle connection to the upstream is closed. 0: none stays open."""
    trust_env: bool = False
    """Whether to reach the upstream through the proxies named in the environment (`HTTPS_PROXY` …)."""
    own_transport: bool = True
    """Whether requests upstream use this package's own transport, which takes less CPU time for each event, or
    httpx's. Requests through a proxy always use httpx's."""

    url_prefix: str = "/v1"
    """The prefix of the default blueprint's routes."""
    max_body: Count = 16 << 20
    """Maximum size of a request's body, in bytes. Pictures are sent in the body, a third larger than their files. It
    is the limit of the extension's own routes, whatever Quart's `MAX_CONTENT_LENGTH` is."""
    trusted_origins: tuple[str, ...] = ()
    """Other origins (`https://app.example`) whose pages may send requests with a visitor's cookie."""
    log_responses: bool = True
    """Whether to install the middleware that gives each request a trace id and logs a line for each response of the
    extension's routes."""

    commit_after: Seconds = 10
    """Seconds without output after which the status 200 is sent. A failure before that is sent with its own status.
    0: the status is sent without waiting for output."""
    keepalive: Seconds = 15
    """Seconds without an event after which a comment is sent, so that the connection stays open. 0: no comments."""
    retry: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """SSE's reconnection time, in milliseconds, sent to readers of `/streams`."""

    linger: Seconds = 30
    """Seconds that a stream which can be resumed goes on without a reader, also before its first one. 0: it ends when
    its last reader disconnects, and at once if it begins without one."""
    retention: Seconds = 300
    """Seconds that a stream can be read after its end. 0: only by the readers that it has then."""
    tombstone: Seconds = 3600
    """Seconds after `retention` in which the response for such a stream is 410 instead of 404. 0: it is 404."""

    log: str = field(default="memory://", repr=False)
    """Where streams are kept. `memory://`: in the memory of each worker. `sqlite:///streams.db`: in a file in the app's
    instance folder (`sqlite:////var/lib/app/streams.db`: at an absolute path), for all workers of one host.
    `redis://`, `rediss://`, `redis+unix://`, `redis+sentinel://` or `redis+cluster://`: in Redis or Valkey, for all
    workers of all hosts. The argument may be a function that is given the `Config` and returns a `StreamLog`."""
    log_lease: PositiveSeconds = 15
    """Seconds after which a worker that does not reach the shared log any more is taken for dead: then its streams
    end as `failed`, with `producer_lost`, for the readers on the other workers."""
    log_prefix: str = "openai-sse"
    """The beginning of all keys on the Redis server. Apps that share a server need a prefix each."""
    log_cipher: LogCipher | None = field(default=None, repr=False)
    """Two functions, bytes to bytes, that encrypt and decrypt what a shared log stores; `None`: it is not encrypted.
    They cannot be set by an environment variable."""

    max_streams: Count = 1000
    """Maximum number of running streams of one process. It protects the process, so each counts on its own."""
    max_streams_per_principal: Count = 20
    """Maximum number of running streams of one principal, on all workers that share a log. For anonymous callers only
    `max_streams` counts."""
    tokens_per_principal: Count | None = None
    """Tokens that a principal may use in each window, prompts included; `None`: no limit. A stream counts from its
    start, with an estimate that its `usage` corrects; a start that does not fit is refused, and a stream that exceeds
    the limit fails. All workers that share a log count together."""
    token_window: PositiveSeconds = 3600
    """Length of that window in seconds. It begins with a principal's first token."""
    token_reserve: Count = 1000
    """Tokens that the estimate of a stream has for each choice of its answer, if the request has neither `max_tokens`
    nor `max_completion_tokens`."""
    attachment_tokens: Count = 1000
    """Tokens that the estimate of a stream has for each picture, file or sound in its request. For text it has a token
    for every four characters."""
    max_readers_per_stream: Count = 100
    """Maximum number of readers that a stream has at a time, on all workers that share a log."""
    max_readers_per_principal: Count = 200
    """Maximum number of readers that the streams of one principal have at a time, on all workers that share a log.
    Plain answers of the OpenAI route and anonymous callers do not count."""
    max_memory: Count = 1 << 30
    """Maximum size, in bytes, of all requests, streams in the log and unread output that the process holds. Beyond it
    no stream is started: the response is 503 with `Retry-After`."""
    write_timeout: PositiveSeconds = 60
    """Seconds that a client may take to accept one write of a streamed response; then the response is cut off."""
    max_event: Count = 16 << 20
    """Maximum size of one event from the upstream, in bytes. Models that draw send a picture in one event."""
    max_entries: Count = 200_000
    """Maximum number of entries of a stream that can be resumed."""
    max_bytes: Count = 64 << 20
    """Maximum size, in bytes, of a stream that can be resumed, of an answer that is not streamed, and of a message
    that is assembled from chunks."""
    max_log_bytes: Count = 512 << 20
    """Maximum size, in bytes, of all streams in the log of one process; ended streams are removed first."""
    high_water: Count = 256 << 10
    """Unread bytes at which the upstream of a stream that can't be resumed is paused."""
    max_duration: PositiveSeconds = 3600
    """Maximum seconds that a stream may run, whatever produces it."""
    on_end_timeout: PositiveSeconds = 5
    """Seconds that readers wait for `on_end` before they see the end. A hook that takes longer goes on afterwards."""
    prepare_timeout: PositiveSeconds = 10
    """Seconds that one `prepare` hook may take. After that the request is refused with 503."""
    auth_timeout: PositiveSeconds = 10
    """Seconds that the auth hook may take. After that the request is refused with 503."""
    observe_timeout: PositiveSeconds = 5
    """Seconds that an observer may take for one event."""
    hook_threads: Count = 64
    """Maximum number of threads for the `def` hooks of each kind: `prepare`, `on_end`, observers, and the `load` of an
    auth hook. Further calls wait for a free thread, until their time limit at most."""

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
        keyed = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        refuse_unknown("Unknown configuration", keyed, known=map(str.upper, option_names()), prefix=prefix)
        refuse_unknown("Unknown options", options, known=option_names())
        values = TEST_DEFAULTS | {key.lower(): value for key, value in keyed.items()} | dict(options)
        for name in ("api_key", "base_url"):
            if not values.get(name) and environ.get(f"OPENAI_{name.upper()}"):
                values[name] = environ[f"OPENAI_{name.upper()}"]
        config = cls(**{name: _convert(name, value, prefix) for name, value in values.items()})
        config.check(prefix)
        return config

    def of(self, upstream: UpstreamConfig) -> Config:
        """The configuration of one of `upstreams`, as if it were the only one."""
        # A key is sent to no other origin than the one it was configured for.
        same = _origin(upstream.base_url) == _origin(self.base_url)
        sent: dict[str, Any] = {name: getattr(self if same else _NOTHING_SENT, name) for name in _SENT}
        given = {name: value for name in _SENT if (value := getattr(upstream, name)) is not None}
        if "api_key" in given or "api_keys" in given:
            sent |= {"api_key": None, "api_keys": ()}
        required = upstream.require_finish_reason
        if required is None:
            required = self.require_finish_reason
        return replace(self, upstreams=(), base_url=upstream.base_url, require_finish_reason=required, **(sent | given))

    @property
    def asks_openai(self) -> bool:
        """Whether `base_url` is OpenAI's own API, in any of its regions (`eu.api.openai.com`)."""
        address = _address(self.base_url)
        return address is not None and f".{address.hostname}".endswith(".api.openai.com")

    def check(self, prefix: str = KEY_PREFIX) -> None:
        """Raises `ConfigurationError` for an invalid configuration. A missing key is left to `check_key`."""
        for each in self.upstreams:
            self.of(each).check(f"{prefix}UPSTREAMS: ")
            self.of(each).check_key(f"{prefix}UPSTREAMS: ")
        address = _address(self.base_url)
        if address is None:
            raise ConfigurationError(f"{prefix}BASE_URL must be an http or https address.")
        if "@" in address.netloc:
            raise ConfigurationError(f"{prefix}BASE_URL must not contain credentials; use {prefix}API_KEY.")
        for name, values in self._sent().items():
            if not all(value.isascii() and value.isprintable() for value in values):
                raise ConfigurationError(f"{prefix}{name.upper()} contains characters that a header can't carry.")
        if not _FRAMING.isdisjoint(map(str.lower, self.headers)):
            raise ConfigurationError(f"{prefix}HEADERS must not contain any of {', '.join(sorted(_FRAMING))}.")
        if self.url_prefix and (not self.url_prefix.startswith("/") or self.url_prefix.endswith("/")):
            raise ConfigurationError(f'{prefix}URL_PREFIX must begin with "/" and must not end with "/".')
        if needed := _NEVER_DENIED.intersection(self.denied_members):
            raise ConfigurationError(f"{prefix}DENIED_MEMBERS must not contain {', '.join(sorted(needed))}.")

    def check_key(self, prefix: str = KEY_PREFIX) -> None:
        """Raises `ConfigurationError` if OpenAI's own API is to be asked without a key.

        An app whose own models are all that it serves needs none. They are registered after `init_app`, so this is
        checked when the server starts.
        """
        if not self.upstreams and not (self.api_key or self.api_keys) and self.asks_openai:
            raise ConfigurationError(f"OpenAI needs a key: set {prefix}API_KEY or OPENAI_API_KEY.")

    def _sent(self) -> dict[str, tuple[str, ...]]:
        """The values that are sent upstream as headers, by their option."""
        return {
            "api_key": (self.api_key,) if isinstance(self.api_key, str) else (),
            "api_keys": self.api_keys,
            "api_key_header": (self.api_key_header,),
            "organization": (self.organization,),
            "project": (self.project,),
            "headers": (*self.headers, *self.headers.values()),
        }


class Options(TypedDict, total=False):
    """The options as arguments of `QuartOpenAISSE`; `Config` says what each means.

    `log` is missing, because its argument may be a function as well.
    """

    api_key: str | ApiKey | None
    base_url: str
    api_keys: Names
    api_key_header: str
    organization: str
    project: str
    headers: Mapping[str, str]
    model: str
    models: Names | None
    require_finish_reason: bool
    allowed_members: Names | None
    denied_members: Names
    include_usage: bool
    connect_timeout: float
    first_output_timeout: float
    first_output_timeouts: Mapping[str, float]
    gap_timeout: float
    gap_timeouts: Mapping[str, float]
    total_timeout: float
    model_first_output_timeout: float
    model_gap_timeout: float
    model_total_timeout: float
    retries: int
    retry_delay: float
    retry_after_max: float
    upstreams: Sequence[UpstreamConfig | Mapping[str, Any]]
    breaker_failures: int
    breaker_reset: float
    slow_first_output: float | None
    max_connections: int
    max_keepalive_connections: int
    keepalive_expiry: float
    trust_env: bool
    own_transport: bool
    url_prefix: str
    max_body: int
    trusted_origins: Names
    log_responses: bool
    commit_after: float
    keepalive: float
    retry: int
    linger: float
    retention: float
    tombstone: float
    log_lease: float
    log_prefix: str
    log_cipher: LogCipher | None
    max_streams: int
    max_streams_per_principal: int
    tokens_per_principal: int | None
    token_window: float
    token_reserve: int
    attachment_tokens: int
    max_readers_per_stream: int
    max_readers_per_principal: int
    max_memory: int
    write_timeout: float
    max_event: int
    max_entries: int
    max_bytes: int
    max_log_bytes: int
    high_water: int
    max_duration: float
    on_end_timeout: float
    prepare_timeout: float
    auth_timeout: float
    observe_timeout: float
    hook_threads: int


def option_names() -> list[str]:
    """The names of all options."""
    return [each.name for each in fields(Config)]


def refuse_unknown(title: str, names: Iterable[str], *, known: Iterable[str], prefix: str = "") -> None:
    """Raises `ConfigurationError` with *title* for names that are not *known*, and suggests the closest known one."""
    known = list(known)
    if unknown := sorted(set(names) - set(known)):
        raise ConfigurationError(f"{title}: {', '.join(_suggestion(each, known, prefix) for each in unknown)}.")


def _suggestion(name: str, known: Sequence[str], prefix: str) -> str:
    by_lower = {each.lower(): each for each in known}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f"{prefix}{name} (did you mean {prefix}{by_lower[close[0]]}?)" if close else f"{prefix}{name}"


_SENT = ("api_key", "api_keys", "api_key_header", "organization", "project", "headers")
_NOTHING_SENT = Config()
_NEVER_DENIED = frozenset({"model", "messages", "stream", "*"})
"""The members that no request can do without, and the `*` of `allowed_members`, which would deny nothing here."""
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    address = _address(url)
    return None if address is None else (address.scheme, address.hostname, address.port)


def _address(url: str) -> SplitResult | None:
    """The parts of *url*, or `None` if it is not an http or https address."""
    try:
        address = urlsplit(url)
        valid = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # whose message would quote a part of the address
        return None
    return address if valid and not any(map(str.isspace, url)) else None


def _convert(name: str, value: Any, prefix: str) -> Any:
    if name == "api_key":
        if value is None or isinstance(value, str) or callable(value):
            return value
        raise ConfigurationError(f"{prefix}API_KEY must be a string or a coroutine function.")
    if name == "log_cipher":
        if value is None or (isinstance(value, tuple | list) and len(value) == 2 and all(map(callable, value))):
            return value if value is None else tuple(value)
        raise ConfigurationError(f"{prefix}LOG_CIPHER must be two functions, one that encrypts and one that decrypts.")
    hint = _HINTS[name]
    if isinstance(value, str) and tuple[str, ...] in (hint, *get_args(hint)):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, Set):
        value = sorted(value, key=str)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        value = list(value)
    try:
        return msgspec.convert(value, hint, strict=False)
    except UnicodeEncodeError:  # an environment variable whose bytes are not UTF-8
        raise ConfigurationError(f"{prefix}{name.upper()} is not valid UTF-8.") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{prefix}{name.upper()}: {error}.") from None


_FUNCTIONS = ("api_key", "log_cipher")
"""The options whose values may be functions, which msgspec does not convert."""
_HINTS = {name: hint for name, hint in get_type_hints(Config, include_extras=True).items() if name not in _FUNCTIONS}
