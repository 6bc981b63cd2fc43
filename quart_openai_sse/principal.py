"""Who is calling: a principal, and the keys under which its streams are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody the auth hook knows. *id* is never a credential; ids of two realms share nothing."""

    id: str
    realm: str = "app"
    """How it was recognised: `session`, `token` …"""
    cookie: bool | None = None
    """Whether a cookie proved it, so that a page of another origin could use it; `None`: not said."""
    anonymous: bool = False
    models: frozenset[str] | None = None
    """The models it may ask for, of those that are allowed anyway; `None`: all of them."""
    max_streams: int | None = None
    """How many streams of its may run; `None`: `max_streams_per_principal`."""

    def __post_init__(self) -> None:
        if self.models is not None:
            object.__setattr__(self, "models", _names(self.models))
        limit = self.max_streams
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError("A principal's max_streams is a whole number, 0 or more, or None.")

    def may_ask(self, model: str) -> bool:
        """Whether it may ask for *model*, if that is allowed anyway."""
        return self.models is None or model in self.models

    def __str__(self) -> str:
        return f"{self.realm}:{self.id}"


def stream_key(instance: str, principal: Principal, stream_id: str) -> str:
    """The log's key of a stream. It contains the principal, so a stranger's stream does not exist for you."""
    parts = (instance, principal.realm, principal.id, stream_id)
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")).hexdigest()


def is_id(value: Any) -> bool:
    """Whether it is a text that can be somebody's id: it goes into log lines."""
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable()


def _names(models: Collection[str]) -> frozenset[str]:
    # A text is a collection of texts too, and would allow each of its letters.
    if isinstance(models, str) or not all(isinstance(name, str) for name in models):
        raise ValueError("A principal's models are a collection of names, or None.")
    return frozenset(models)
