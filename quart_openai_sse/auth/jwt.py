"""JSON Web Tokens (extra `jwt`): the auth hook that checks them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.algorithms import get_default_algorithms

from quart_openai_sse.auth.authentication import Authenticate, call
from quart_openai_sse.auth.hooks import bearer_token
from quart_openai_sse.auth.ids import to_id
from quart_openai_sse.auth.jwks import Key, remote_keys, static_key
from quart_openai_sse.auth.lookups import ClientFactory
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal

__all__ = ["Claims", "jwt_bearer"]

logger = logging.getLogger("quart_openai_sse")

Claims = Mapping[str, Any]
"""The members of a token's payload."""

_USES = ("type", "token_type", "token_use", "typ")
"""Claims that say what a token is for: of Flask-JWT-Extended, Simple JWT, Cognito and Keycloak."""

_REFRESH = ("refresh", "refresh_token", "offline")
"""Their values in a token that is only for fetching new tokens."""


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
    types: Collection[str] = ("", "JWT", "at+jwt"),
    check: Callable[[Claims], bool | Awaitable[bool]] | None = None,
    models_claim: str | Callable[[Claims], Collection[str] | str | None] | None = None,
    max_streams_claim: str | Callable[[Claims], int | None] | None = None,
    jwks_max_age: float = 300,
    jwks_interval: float = 10,
    jwks_timeout: float = 3,
    client: ClientFactory | None = None,
) -> Authenticate:
    """Returns an auth hook that recognises `Authorization: Bearer …` with a signed token that has not expired.

    The claim *subject_claim* is the principal's id: a text or a whole number. *key* is a secret or a public key in
    PEM; or *jwks_url* is the address of the issuer's key set. Only *algorithms* are accepted, whatever a token's
    header names. *audience* and *issuer* are compared with the token's claims. With `audience=None` a token that names
    an audience is refused, since it is for another service; with `issuer=None` every token that the key fits is
    accepted. *leeway* is the tolerated difference between clocks, in seconds.

    *types* are the values of the header `typ` that are accepted, "" for a token without it; case and the prefix
    `application/` do not matter. A token whose claim `type`, `token_type`, `token_use` or `typ` says that it is a
    refresh token is refused.

    *check* is given the claims of a token that is valid otherwise, and returns whether to accept it. A coroutine
    function is awaited; any other function runs in a thread, so it may ask a database. Asking for a claim that the
    token lacks (`KeyError`) refuses the token; any other exception is raised by the hook.

    *models_claim* and *max_streams_claim* limit the principal: each is the name of a claim, or a function of all
    claims. A token that lacks the claim named by *models_claim* may use no model.

    The keys at *jwks_url* are fetched when they are first needed, when they are older than *jwks_max_age* seconds,
    and for an unknown key, but at most once in *jwks_interval* seconds. If a fetch fails or takes more than
    *jwks_timeout* seconds, the previous keys stay in use; without any, the hook raises `AuthUnavailable` (503).
    *client* creates the HTTP client for the fetch.

    Raises `ConfigurationError` for options that would accept no token, or tokens of other issuers or services.
    """
    allowed = _checked_algorithms(algorithms, remote=jwks_url is not None)
    if (key is None) == (jwks_url is None):
        raise ConfigurationError("jwt_bearer: give either key or jwks_url.")
    accepted = _checked_types(types)
    audiences = (audience,) if isinstance(audience, str) else None if audience is None else tuple(audience)
    if issuer == "" or (audiences is not None and not (audiences and all(audiences))):
        raise ConfigurationError("jwt_bearer: issuer and audience must not be empty.")
    if jwks_url is None:
        find = static_key(key or "", allowed)
    else:
        find = remote_keys(jwks_url, allowed, jwks_max_age, jwks_interval, jwks_timeout, client)
    verifier = _Verifier(
        audiences=audiences,
        issuer=issuer,
        leeway=leeway,
        realm=realm,
        subject_claim=subject_claim,
        read_models=_claim_reader(models_claim, missing=()),
        read_max_streams=_claim_reader(max_streams_claim, missing=None),
    )

    async def jwt_bearer_hook() -> Principal | None:
        token = bearer_token()
        if token is None or (header := _header(token)) is None or header["alg"] not in allowed:
            return None
        if _media_type(header.get("typ", "")) not in accepted:
            _log_refused("its typ is not accepted")
            return None
        found = await find(header.get("kid"), header["alg"])
        claims = None if found is None else verifier.claims(token, found)
        principal = None if claims is None else verifier.principal(claims)
        if check is None or claims is None or principal is None:
            return principal
        if not await _passes(check, claims):
            _log_refused("check did not accept it")
            return None
        return principal

    return jwt_bearer_hook


# Configuration ---------------------------------------------------------------------------------------------------


def _checked_algorithms(algorithms: Collection[str], *, remote: bool) -> tuple[str, ...]:
    known = get_default_algorithms().keys() - {"none"}
    names = () if isinstance(algorithms, str) else tuple(dict.fromkeys(algorithms))
    if not names or not known.issuperset(names):
        raise ConfigurationError(f"jwt_bearer: algorithms must be a list of {', '.join(sorted(known))}.")
    secret = [name for name in names if name.startswith("HS")]
    if secret and (remote or len(secret) < len(names)):
        # Otherwise an attacker could sign a token with the public key as the secret.
        raise ConfigurationError("jwt_bearer: HS… needs key and cannot be combined with other algorithms.")
    return names


def _checked_types(types: Collection[str]) -> frozenset[str]:
    if isinstance(types, str) or not types or not all(isinstance(each, str) for each in types):
        raise ConfigurationError("jwt_bearer: types must be a collection of values of the header typ.")
    return frozenset(map(_media_type, types))


def _media_type(typ: str) -> str:
    """A value of `typ` in the form in which it is compared (RFC 7515, 4.1.9)."""
    return typ.lower().removeprefix("application/")


def _claim_reader(claim: str | Callable[[Claims], Any] | None, *, missing: Any) -> Callable[[Claims], Any]:
    """A function that reads a limit from the claims: `None` is no limit, *missing* the limit without the claim."""
    if claim is None:
        return lambda claims: None
    if callable(claim):
        return claim
    return lambda claims: missing if claims.get(claim) is None else claims[claim]


# One token ---------------------------------------------------------------------------------------------------------


def _header(token: str) -> Mapping[str, Any] | None:
    """The token's header, not verified yet: it only selects the key. `None` if the header is invalid."""
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
        # "crit" names extensions that must be understood (RFC 7515, 4.1.11); we understand none.
        texts = (header["alg"], header.get("kid", ""), header.get("typ", ""))
        if "crit" not in header and all(isinstance(each, str) for each in texts):
            return header
    except Exception as error:  # a crafted token must not cause a 500
        _log_refused(type(error).__name__)  # not its text, which may quote the token
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verifier:
    """What a token must contain, and the principal that it stands for."""

    audiences: tuple[str, ...] | None
    issuer: str | None
    leeway: float
    realm: str
    subject_claim: str
    read_models: Callable[[Claims], Any]
    read_max_streams: Callable[[Claims], Any]

    def claims(self, token: str, key: Key) -> Claims | None:
        """The token's claims, or `None` if it is forged, for another use, not valid yet, expired or incomplete.

        *key* is the key that the token's header selected.
        """
        try:
            claims: Claims = jwt.decode(
                token,
                key.value,
                algorithms=list(key.algorithms),
                audience=self.audiences,
                issuer=None if self.issuer is None else [self.issuer],
                leeway=self.leeway,
                # The subject's type is checked by `principal`: issuers send numbers as well, against RFC 7519.
                options={"require": ["exp", self.subject_claim], "verify_sub": False},
            )
        except Exception as error:  # a crafted token must not cause a 500
            _log_refused(type(error).__name__)  # not its text, which may quote the token
            return None
        uses = [claims.get(name) for name in _USES]
        if any(isinstance(use, str) and use.lower() in _REFRESH for use in uses):
            _log_refused("it is a refresh token")
            return None
        return claims

    def principal(self, claims: Claims) -> Principal | None:
        """The principal of valid claims, or `None` if the subject is not an id, or a limit is invalid."""
        subject = to_id(claims[self.subject_claim])
        if subject is None:
            _log_refused("its subject is not an id")
            return None
        try:
            models, limit = self.read_models(claims), self.read_max_streams(claims)
            if isinstance(models, str):
                models = models.split()  # separated by spaces, like OAuth's scopes
            elif isinstance(models, Mapping):
                raise TypeError
            return Principal(subject, realm=self.realm, cookie=False, models=models, max_streams=limit)
        except Exception as error:
            logger.warning("jwt_bearer: a token was refused, its limits are invalid: %s", type(error).__name__)
            return None


async def _passes(check: Callable[[Claims], bool | Awaitable[bool]], claims: Claims) -> bool:
    try:
        return bool(await call(check, claims))
    except KeyError as error:
        if error.args and isinstance(error.args[0], str) and error.args[0] not in claims:
            return False
        raise


def _log_refused(reason: str) -> None:
    logger.debug("jwt_bearer: a token was refused: %s", reason)
