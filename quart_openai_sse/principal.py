"""The principal that makes a request, and the keys of its streams."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that the auth hook recognised: a user or a program. The streams of two principals are separate."""

    id: str
    """Identifies the principal within its realm; never a credential, since it goes into log lines."""
    realm: str = "app"
    """How the principal was recognised: `session`, `token` … Equal ids in two realms are two principals."""
    cookie: bool | None = None
    """Whether a credential that browsers send by themselves proved the principal; then the request's origin is checked.

    `None`: if the request has such a credential, which is a cookie, or an `Authorization` of the scheme Basic, Digest,
    Negotiate or NTLM.
    """
    anonymous: bool = False
    """Whether the caller is unknown; such callers share no list of streams and cannot use `Idempotency-Key`."""
    models: frozenset[str] | None = None
    """The models that the principal may use, among those that the app allows; `None`: all of them."""
    max_streams: int | None = None
    """How many of the principal's streams may run at the same time; `None`: `max_streams_per_principal`."""

    def __post_init__(self) -> None:
        if self.models is not None:
            object.__setattr__(self, "models", _names(self.models))
        limit = self.max_streams
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError("A principal's max_streams must be a whole number, 0 or more, or None.")

    def may_ask(self, model: str) -> bool:
        """Whether the principal may use *model*, provided that the app allows it."""
        return self.models is None or model in self.models

    def __str__(self) -> str:
        return f"{self.realm}:{self.id}"


def owner_key(instance: str, principal: Principal) -> str:
    """The principal's key in the log of an *instance*: a digest, which tells nothing of the principal."""
    parts = (instance, principal.realm, principal.id)
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")).hexdigest()


def stream_key(owner: str, stream_id: str) -> str:
    """The key in the log of a stream of *owner*, an `owner_key`. No other principal's requests can produce it."""
    return f"{owner}:{stream_id}"  # *owner* is a digest, always of the same length


def _names(models: Collection[str]) -> frozenset[str]:
    # A text is a collection too: it would allow each of its letters.
    if isinstance(models, str) or not all(isinstance(name, str) for name in models):
        raise ValueError("A principal's models must be a collection of names, or None.")
    return frozenset(models)
