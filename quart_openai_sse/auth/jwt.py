"""JSON Web Tokens (extra `jwt`): the hook that checks them, and the keys it checks them with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.algorithms import get_default_algorithms

from quart_openai_sse.auth.hooks import Authenticate, bearer_token
from quart_openai_sse.auth.jwks import Key, remote_keys, static_key
from quart_openai_sse.auth.lookups import ClientFactory
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal, is_id

__all__ = ["Claims", "jwt_bearer"]

logger = logging.getLogger("quart_openai_sse")

Claims = Mapping[str, Any]
"""What a token says."""


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
        find = static_key(key or "", allowed)
    else:
        find = remote_keys(jwks_url, allowed, jwks_max_age, jwks_interval, jwks_timeout, client)
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

    def principal(self, token: str, key: Key) -> Principal | None:
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
