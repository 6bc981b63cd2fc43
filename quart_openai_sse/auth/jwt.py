"""JSON Web Tokens (extra `jwt`): the auth hook that checks them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.algorithms import get_default_algorithms

from quart_openai_sse.auth.authentication import Authenticate
from quart_openai_sse.auth.hooks import bearer_token
from quart_openai_sse.auth.jwks import Key, remote_keys, static_key
from quart_openai_sse.auth.lookups import ClientFactory
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal, is_id

__all__ = ["Claims", "jwt_bearer"]

logger = logging.getLogger("quart_openai_sse")

Claims = Mapping[str, Any]
"""The members of a token's payload."""


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
    """Returns an auth hook that recognises `Authorization: Bearer …` with a signed token that has not expired.

    The claim *subject_claim* is the principal's id. *key* is a secret or a public key in PEM; or *jwks_url* is the
    address of the issuer's key set. Only *algorithms* are accepted, whatever a token's header names. *audience* and
    *issuer* are compared with the token's claims. With `audience=None` a token that names an audience is refused,
    since it is for another service; with `issuer=None` every token that the key fits is accepted. *leeway* is the
    tolerated difference between clocks, in seconds.

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
    audiences = (audience,) if isinstance(audience, str) else None if audience is None else tuple(audience)
    if issuer == "" or (audiences is not None and not (audiences and all(audiences))):
        raise ConfigurationError("jwt_bearer: issuer and audience must not be empty.")
    if jwks_url is None:
        find = static_key(key or "", allowed)
    else:
        find = remote_keys(jwks_url, allowed, jwks_max_age, jwks_interval, jwks_timeout, client)
    check = _TokenCheck(
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
        found = await find(header.get("kid"), header["alg"])
        return None if found is None else check.principal(token, found)

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
        if "crit" not in header and isinstance(header["alg"], str) and isinstance(header.get("kid", ""), str):
            return header
    except Exception as error:  # a crafted token must not cause a 500
        _log_refused(error)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenCheck:
    """What a token must contain, and the principal that it stands for."""

    audiences: tuple[str, ...] | None
    issuer: str | None
    leeway: float
    realm: str
    subject_claim: str
    read_models: Callable[[Claims], Any]
    read_max_streams: Callable[[Claims], Any]

    def principal(self, token: str, key: Key) -> Principal | None:
        """The token's principal, or `None` if it is forged, for another service, not valid yet, expired or incomplete.

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
                options={"require": ["exp", self.subject_claim]},
            )
        except Exception as error:  # a crafted token must not cause a 500
            _log_refused(error)
            return None
        subject = claims[self.subject_claim]
        if isinstance(subject, int) and not isinstance(subject, bool):
            subject = str(subject)
        return self._limited(subject, claims) if is_id(subject) else None

    def _limited(self, subject: str, claims: Claims) -> Principal | None:
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


def _log_refused(error: Exception) -> None:
    logger.debug("jwt_bearer: a token was refused: %s", type(error).__name__)  # not its text, which may quote the token
