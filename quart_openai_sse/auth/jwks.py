"""The keys that check signed tokens: one configured key, or the key set that a token issuer publishes (JWKS)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from jwt.algorithms import get_default_algorithms

from quart_openai_sse.auth.lookups import (
    BadAnswer,
    ClientFactory,
    PerLoop,
    SingleFlight,
    check_address,
    describe_failure,
    fetch,
    read_member,
)
from quart_openai_sse.errors import AuthUnavailable, ConfigurationError

logger = logging.getLogger("quart_openai_sse")

_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}  # key type: prefixes of its algorithms' names
_MAX_KEYS = 100  # of one issuer
_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: a shorter one can be guessed from one token
_RSA_BITS = 2048  # RFC 7518, 3.3


@dataclass(frozen=True, slots=True)
class Key:
    """A key that checks signatures. Its `repr` leaves out the value, which may be a secret."""

    kid: str | None
    """The key's id in the issuer's set; `None` if it has none."""
    algorithms: tuple[str, ...]
    """The allowed algorithms that fit the key."""
    value: Any = field(repr=False)
    """The key as PyJWT takes it."""


FindKey = Callable[[str | None, str], Awaitable[Key | None]]
"""Returns the key for a token's `kid` and `alg`, or `None` if there is no such key. Raises `AuthUnavailable`."""


def static_key(key: str | bytes, algorithms: tuple[str, ...]) -> FindKey:
    """Returns *key* for every token. Raises `ConfigurationError` if *key* is unusable or too short for *algorithms*."""
    only = Key(None, algorithms, _prepared(key, algorithms))

    async def find(_kid: str | None, _algorithm: str) -> Key:
        return only

    return find


def remote_keys(
    url: str,
    algorithms: tuple[str, ...],
    max_age: float,
    interval: float,
    timeout: float,
    client: ClientFactory | None,
) -> FindKey:
    """Finds keys in the key set at *url*. Raises `ConfigurationError` for an invalid *url*.

    The set is fetched when a token first needs it, when it is older than *max_age* seconds, and when a token names an
    unknown key, but at most once in *interval* seconds. A fetch fails after *timeout* seconds.
    """
    check_address(url, "jwt_bearer")

    async def get() -> tuple[Key, ...]:
        async with asyncio.timeout(timeout):
            response, body = await fetch(url, headers={}, client=client)
        return _read_keys(response, body, algorithms)

    key_sets = PerLoop(lambda: _KeySet(get, name=urlsplit(url).netloc, max_age=max_age, interval=interval))

    async def find(kid: str | None, algorithm: str) -> Key | None:
        return await key_sets.get().find(kid, algorithm)

    return find


def _prepared(key: str | bytes, algorithms: tuple[str, ...]) -> Any:
    """The key as PyJWT takes it. No error quotes the key, or PyJWT's error, since the key may be a secret."""
    known = get_default_algorithms()
    try:
        value, *_ = (known[name].prepare_key(key) for name in algorithms)
    except Exception as error:
        reason = type(error).__name__
        raise ConfigurationError(f"jwt_bearer: key cannot be used with {', '.join(algorithms)} ({reason}).") from None
    if hasattr(value, "private_bytes"):
        raise ConfigurationError("jwt_bearer: key must be the public key; the private key stays with the issuer.")
    _check_length(value, algorithms)
    return value


def _check_length(value: Any, algorithms: tuple[str, ...]) -> None:
    for name in algorithms:
        if name in _SECRET_BYTES and len(value) < _SECRET_BYTES[name]:
            raise ConfigurationError(f"jwt_bearer: {name} needs a secret of at least {_SECRET_BYTES[name]} bytes.")
        if name.startswith(_FAMILIES["RSA"]) and value.key_size < _RSA_BITS:
            raise ConfigurationError(f"jwt_bearer: {name} needs a key of at least {_RSA_BITS} bits.")


class _KeySet:
    """The cached key set of one issuer, on one event loop."""

    def __init__(
        self, get: Callable[[], Awaitable[tuple[Key, ...]]], *, name: str, max_age: float, interval: float
    ) -> None:
        self._get = get
        self._name = name
        self._max_age = max_age
        self._interval = interval
        self._keys: tuple[Key, ...] = ()
        self._stale_from = self._not_before = float("-inf")
        self._failing = False
        self._flights: SingleFlight[None] = SingleFlight()

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """See `FindKey`."""
        known = any(kid in (None, key.kid) for key in self._keys)
        refreshing = self._refresh() if not known or monotonic() >= self._stale_from else None
        # While the issuer is unreachable, a token whose key is known does not wait for the fetch.
        if refreshing is not None and not (known and self._failing):
            await asyncio.shield(refreshing)
        if not self._keys:
            raise AuthUnavailable("The token issuer's keys could not be fetched.")
        fitting = [key for key in self._keys if kid in (None, key.kid) and algorithm in key.algorithms]
        # A token without a kid is accepted only if exactly one key fits.
        return fitting[0] if fitting and (kid is not None or len(fitting) == 1) else None

    def _refresh(self) -> asyncio.Task[None] | None:
        """The running fetch; or `None` if the last one was too recent, so that invented kids cause no flood."""
        if "keys" not in self._flights:
            now = monotonic()
            if now < self._not_before:
                return None
            self._not_before = now + self._interval
        return self._flights.start("keys", self._fetch)

    async def _fetch(self) -> None:
        """Fetches the keys. If that fails, the previous keys stay."""
        begun = monotonic()
        try:
            self._keys = await self._get()
        except Exception as error:
            self._failing = True
            logger.warning("jwt_bearer: the keys of %s could not be fetched: %s", self._name, describe_failure(error))
        else:
            self._failing = False
            self._stale_from = begun + self._max_age


def _read_keys(response: httpx.Response, body: bytes, algorithms: tuple[str, ...]) -> tuple[Key, ...]:
    """The keys of a JWK set. Raises if the answer has none, so that the previous keys stay."""
    if response.status_code != 200:
        raise BadAnswer(f"the status is {response.status_code}")
    listed = read_member(body, "keys")
    if not isinstance(listed, list):
        raise BadAnswer("it is not a set of keys")
    keys = tuple(key for each in listed[:_MAX_KEYS] if (key := _read_key(each, algorithms)) is not None)
    if not keys:
        raise BadAnswer("it has no key for the allowed algorithms")
    return keys


def _read_key(data: Any, algorithms: tuple[str, ...]) -> Key | None:
    """A key that checks signatures, with the algorithms that fit it; `None` for any other key, and for a secret."""
    try:
        family = _FAMILIES[data["kty"]]
        fitting = tuple(name for name in algorithms if name.startswith(family) and data.get("alg") in (None, name))
        kid = data.get("kid")
        if fitting and data.get("use", "sig") == "sig" and isinstance(kid, str | None):
            value = jwt.PyJWK(data, fitting[0]).key
            _check_length(value, fitting)
            return Key(kid, fitting, value)
    except Exception as error:  # an unusable key is skipped; the other keys of the set still work
        logger.debug("jwt_bearer: a key of the set was skipped: %s", type(error).__name__)
    return None
