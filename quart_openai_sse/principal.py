"""Who is calling: a principal, and the keys under which its streams are kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody the auth hook knows. *id* is never a credential; ids of two realms share nothing."""

    id: str
    realm: str = "app"
    """How it was recognised: `session`, `token` …"""
    cookie: bool | None = None
    """Whether a cookie proved it, so that a page of another origin could use it; `None`: not said."""
    anonymous: bool = False

    def __str__(self) -> str:
        return f"{self.realm}:{self.id}"


def stream_key(instance: str, principal: Principal, stream_id: str) -> str:
    """The log's key of a stream. It contains the principal, so a stranger's stream does not exist for you."""
    parts = (instance, principal.realm, principal.id, stream_id)
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")).hexdigest()
