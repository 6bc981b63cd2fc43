"""JSON Web Tokens (extra `jwt`): the hook that checks them, and the keys it checks them with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from jwt.algorithms import get_default_algorithms

from quart_openai_sse.auth import Authenticate, bearer_token
from quart_openai_sse.errors import AuthUnavailable, ConfigurationError
from quart_openai_sse.lookups import BadAnswer, ClientFactory, PerLoop, SingleFlight, check_address, fetch, what_failed
from quart_openai_sse.principal import Principal, is_id
from quart_openai_sse.protocol import json

__all__ = ["Claims", "jwt_bearer"]

logger = logging.getLogger("quart_openai_sse")

Claims = Mapping[str, Any]
"""What a token says."""

_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: a shorter one can be guessed from one token
_RSA_BITS = 2048  # RFC 7518, 3.3
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}  # by a key's type, how its algorithms begin
_MAX_KEYS = 100  # of one issuer


def jwt_bearer(
    *,
    algorithms: Collection[str],
    audience: str | Collection[str] | None,
    issuer: str | None,
    key: str | bytes | None = None,
    jwks_url: str | None = None,
    leeway: float = 0,
    realm: str = "jwt",
    subject_claim: str = "sub",
    models_claim: str | Callable[[Claims], Collection[str] | str | None] | None = None,
    max_streams_claim: str | Callable[[Claims], int | None] | None = None,
    jwks_max_age: float = 300,
    jwks_interval: float = 10,
    jwks_timeout: float = 3,
    client: ClientFactory | None = None,
) -> Authenticate:
    """Recognises `Authorization: Bearer …` by a signed token that has not expired; its `sub` is the principal's id.

    *key* is a secret or a public key in PEM, or *jwks_url* is where the issuer keeps its keys. Only *algorithms*
    count, whatever a token says. *audience* and *issuer* must be said: with an *audience* of `None`, a token that
    names one is refused, since it is for somebody else; with an *issuer* of `None`, whoever has the key is trusted.
    *leeway* is for clocks that differ, in seconds.

    *models_claim* and *max_streams_claim* limit the principal: the names of claims, or functions that are given all
    claims. A token without the claim that *models_claim* names may ask for no model; a function decides otherwise.

    The keys at *jwks_url* are fetched when first needed, after *jwks_max_age* seconds, and for a key nobody knows;
    but at most once in *jwks_interval* seconds. While they can't be had, the last ones go on working; if there never
    were any, who calls can't be found out (`AuthUnavailable`, 503). *client* makes the HTTP client for it.

    Raises `ConfigurationError` for what would let in the wrong ones, or nobody.
    """
    allowed = _checked_algorithms(algorithms, remote=jwks_url is not None)
    if (key is None) == (jwks_url is None):
        raise ConfigurationError("jwt_bearer needs either key= or jwks_url=.")
    audiences = (audience,) if isinstance(audience, str) else None if audience is None else tuple(audience)
    if issuer == "" or (audiences is not None and not (audiences and all(audiences))):
        raise ConfigurationError("jwt_bearer can't compare with an empty issuer or audience.")
    if jwks_url is None:
        find = _static_key(key or "", allowed)
    else:
        find = _remote_keys(jwks_url, allowed, jwks_max_age, jwks_interval, jwks_timeout, client)
    tokens = _Tokens(
        audiences=audiences,
        issuer=issuer,
        leeway=leeway,
        realm=realm,
        subject_claim=subject_claim,
        models=_reading(models_claim, missing=()),
        max_streams=_reading(max_streams_claim, missing=None),
    )

    async def hook() -> Principal | None:
        token = bearer_token()
        if token is None or (header := _header(token)) is None or header["alg"] not in allowed:
            return None
        found = await find(header.get("kid"), header["alg"])
        return None if found is None else tokens.principal(token, found)

    return hook


# One token -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str | None
    algorithms: tuple[str, ...]
    value: Any = field(repr=False)


def _header(token: str) -> Mapping[str, Any] | None:
    """What a token says of itself, which is good for finding the key it must fit; `None` for garbage."""
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
        # "crit" names what must be understood, and none of that is (RFC 7515, 4.1.11).
        if "crit" not in header and isinstance(header["alg"], str) and isinstance(header.get("kid", ""), str):
            return header
    except Exception as error:  # whatever somebody crafted, it is not our failure
        _log_refused(error)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """What a token must say, and who it then stands for."""

    audiences: tuple[str, ...] | None
    issuer: str | None
    leeway: float
    realm: str
    subject_claim: str
    models: Callable[[Claims], Any]
    max_streams: Callable[[Claims], Any]

    def principal(self, token: str, key: _Key) -> Principal | None:
        """Who it is, or `None` for a token that is forged, for others, too early, too late or incomplete."""
        try:
            claims: Claims = jwt.decode(
                token,
                key.value,
                algorithms=list(key.algorithms),
                audience=self.audiences,
                issuer=None if self.issuer is None else [self.issuer],
                leeway=self.leeway,
                options={"require": ["exp", self.subject_claim]},
            )
        except Exception as error:  # see above
            _log_refused(error)
            return None
        subject = claims[self.subject_claim]
        if isinstance(subject, int) and not isinstance(subject, bool):
            subject = str(subject)
        return self._limited(subject, claims) if is_id(subject) else None

    def _limited(self, subject: str, claims: Claims) -> Principal | None:
        try:
            models, limit = self.models(claims), self.max_streams(claims)
            if isinstance(models, str):
                models = models.split()  # as OAuth writes a scope
            elif isinstance(models, Mapping):
                raise TypeError
            return Principal(subject, realm=self.realm, cookie=False, models=models, max_streams=limit)
        except Exception as error:
            logger.warning("a JWT was refused: its models or max_streams can't be read: %s", type(error).__name__)
            return None


def _reading(claim: str | Callable[[Claims], Any] | None, *, missing: Any) -> Callable[[Claims], Any]:
    """What reads a limit from claims; `None` is no limit."""
    if claim is None:
        return lambda claims: None
    if callable(claim):
        return claim
    return lambda claims: missing if claims.get(claim) is None else claims[claim]


def _log_refused(error: Exception) -> None:
    logger.debug("a JWT was refused: %s", type(error).__name__)  # without its text: that may quote the token


# Keys ------------------------------------------------------------------------------------------------------------

_Find = Callable[[str | None, str], Awaitable[_Key | None]]
"""Finds the key for a token with such a `kid` and `alg`. Raises `AuthUnavailable`."""


def _static_key(key: str | bytes, algorithms: tuple[str, ...]) -> _Find:
    only = _Key(None, algorithms, _prepared(key, algorithms))

    async def find(_kid: str | None, _algorithm: str) -> _Key:
        return only

    return find


def _remote_keys(
    url: str,
    algorithms: tuple[str, ...],
    max_age: float,
    interval: float,
    timeout: float,
    client: ClientFactory | None,
) -> _Find:
    check_address(url, "jwt_bearer")

    async def get() -> tuple[_Key, ...]:
        async with asyncio.timeout(timeout):
            response, body = await fetch(url, headers={}, client=client)
        return _read_keys(response, body, algorithms)

    key_sets = PerLoop(lambda: _KeySet(get, name=urlsplit(url).netloc, max_age=max_age, interval=interval))

    async def find(kid: str | None, algorithm: str) -> _Key | None:
        return await key_sets.get().find(kid, algorithm)

    return find


class _KeySet:
    """The keys of one issuer, as one event loop knows them."""

    def __init__(
        self, get: Callable[[], Awaitable[tuple[_Key, ...]]], *, name: str, max_age: float, interval: float
    ) -> None:
        self._get = get
        self._name = name
        self._max_age = max_age
        self._interval = interval
        self._keys: tuple[_Key, ...] = ()
        self._stale_from = self._not_before = float("-inf")
        self._failing = False
        self._flights: SingleFlight[None] = SingleFlight()

    async def find(self, kid: str | None, algorithm: str) -> _Key | None:
        """See `_Find`."""
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


def _read_keys(response: httpx.Response, body: bytes, algorithms: tuple[str, ...]) -> tuple[_Key, ...]:
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


def _read_key(data: Any, algorithms: tuple[str, ...]) -> _Key | None:
    """A key for signatures, with the algorithms it is for; `None` for any other, and for a secret."""
    try:
        family = _FAMILIES[data["kty"]]
        fitting = tuple(name for name in algorithms if name.startswith(family) and data.get("alg") in (None, name))
        kid = data.get("kid")
        if fitting and data.get("use", "sig") == "sig" and isinstance(kid, str | None):
            value = jwt.PyJWK(data, fitting[0]).key
            _check_length(value, fitting)
            return _Key(kid, fitting, value)
    except Exception as error:  # one strange key does not take the others away
        logger.debug("a key was left out: %s", type(error).__name__)
    return None


# What was configured ---------------------------------------------------------------------------------------------


def _checked_algorithms(algorithms: Collection[str], *, remote: bool) -> tuple[str, ...]:
    known = get_default_algorithms().keys() - {"none"}
    names = () if isinstance(algorithms, str) else tuple(dict.fromkeys(algorithms))
    if not names or not known.issuperset(names):
        raise ConfigurationError(f"jwt_bearer needs algorithms=[…], of {', '.join(sorted(known))}.")
    secret = [name for name in names if name.startswith("HS")]
    if secret and (remote or len(secret) < len(names)):
        # Or a public key, which everybody has, could be taken for the secret.
        raise ConfigurationError("jwt_bearer takes HS… with key= only, and with no other algorithm beside it.")
    return names


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
