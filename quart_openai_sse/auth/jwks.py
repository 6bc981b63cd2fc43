"""The keys of a token issuer."""

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
    fetch,
    what_failed,
)
from quart_openai_sse.errors import AuthUnavailable, ConfigurationError
from quart_openai_sse.protocol import json

logger = logging.getLogger("quart_openai_sse")

_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}  # by a key's type, how its algorithms begin
_MAX_KEYS = 100  # of one issuer
_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: a shorter one can be guessed from one token
_RSA_BITS = 2048  # RFC 7518, 3.3


@dataclass(frozen=True, slots=True)
class Key:
    """A key for signatures."""

    kid: str | None
    algorithms: tuple[str, ...]
    value: Any = field(repr=False)


FindKey = Callable[[str | None, str], Awaitable[Key | None]]
"""Finds the key for a token with such a `kid` and `alg`. Raises `AuthUnavailable`."""


def static_key(key: str | bytes, algorithms: tuple[str, ...]) -> FindKey:
    """The one key that was configured. Raises `ConfigurationError` for a key that cannot be used or is too short."""
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
    check_address(url, "jwt_bearer")

    async def get() -> tuple[Key, ...]:
        async with asyncio.timeout(timeout):
            response, body = await fetch(url, headers={}, client=client)
        return _read_keys(response, body, algorithms)

    key_sets = PerLoop(lambda: _KeySet(get, name=urlsplit(url).netloc, max_age=max_age, interval=interval))

    async def find(kid: str | None, algorithm: str) -> Key | None:
        return await key_sets.get().find(kid, algorithm)

    return find


class _KeySet:
    """The keys of one issuer, as one event loop knows them."""

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
        # While the issuer is out of reach, nobody whose key is known waits for it.
        if refreshing is not None and not (known and self._failing):
            await asyncio.shield(refreshing)
        if not self._keys:
            raise AuthUnavailable("The keys of the tokens' issuer can't be had.")
        fitting = [key for key in self._keys if kid in (None, key.kid) and algorithm in key.algorithms]
        # A token without a kid must leave no choice.
        return fitting[0] if fitting and (kid is not None or len(fitting) == 1) else None

    def _refresh(self) -> asyncio.Task[None] | None:
        """The one fetch under way, or `None` if it is too early for another: a flood of kids is not passed on."""
        if "keys" not in self._flights:
            now = monotonic()
            if now < self._not_before:
                return None
            self._not_before = now + self._interval
        return self._flights.start("keys", self._fetch)

    async def _fetch(self) -> None:
        """Replaces the keys; a failure changes nothing."""
        begun = monotonic()
        try:
            self._keys = await self._get()
        except Exception as error:
            self._failing = True
            logger.warning("the keys of %s can't be had: %s", self._name, what_failed(error))
        else:
            self._failing = False
            self._stale_from = begun + self._max_age


def _read_keys(response: httpx.Response, body: bytes, algorithms: tuple[str, ...]) -> tuple[Key, ...]:
    """The keys of a JWK set. Raises for an answer without any: the last ones are better than that."""
    if response.status_code != 200:
        raise BadAnswer(f"its status is {response.status_code}")
    listed = json.decode(body)["keys"]
    if not isinstance(listed, list):
        raise BadAnswer("it is not a set of keys")
    keys = tuple(key for each in listed[:_MAX_KEYS] if (key := _read_key(each, algorithms)) is not None)
    if not keys:
        raise BadAnswer("it has no key for the algorithms that are allowed")
    return keys


def _read_key(data: Any, algorithms: tuple[str, ...]) -> Key | None:
    """A key for signatures, with the algorithms it is for; `None` for any other, and for a secret."""
    try:
        family = _FAMILIES[data["kty"]]
        fitting = tuple(name for name in algorithms if name.startswith(family) and data.get("alg") in (None, name))
        kid = data.get("kid")
        if fitting and data.get("use", "sig") == "sig" and isinstance(kid, str | None):
            value = jwt.PyJWK(data, fitting[0]).key
            _check_length(value, fitting)
            return Key(kid, fitting, value)
    except Exception as error:  # one strange key does not take the others away
        logger.debug("a key was left out: %s", type(error).__name__)
    return None


def _prepared(key: str | bytes, algorithms: tuple[str, ...]) -> Any:
    """The key as PyJWT wants it. No error quotes it, or the error that would: it may be a secret."""
    known = get_default_algorithms()
    try:
        value, *_ = (known[name].prepare_key(key) for name in algorithms)
    except Exception as error:
        reason = type(error).__name__
        raise ConfigurationError(f"jwt_bearer can't use this key for {', '.join(algorithms)} ({reason}).") from None
    if hasattr(value, "private_bytes"):
        raise ConfigurationError("jwt_bearer needs the public key; the private one is the issuer's alone.")
    _check_length(value, algorithms)
    return value


def _check_length(value: Any, algorithms: tuple[str, ...]) -> None:
    for name in algorithms:
        if name in _SECRET_BYTES and len(value) < _SECRET_BYTES[name]:
            raise ConfigurationError(f"jwt_bearer needs a secret of {_SECRET_BYTES[name]} bytes or more for {name}.")
        if name.startswith(_FAMILIES["RSA"]) and value.key_size < _RSA_BITS:
            raise ConfigurationError(f"jwt_bearer needs a key of {_RSA_BITS} bits or more for {name}.")
