"""Lists of models: how an upstream's answer is read, and what several upstreams list together."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, UpstreamError
from quart_openai_sse.protocol import json

PATIENCE = 8.0
"""Seconds for an upstream's list. Clients do not wait much longer for the app's own (Open WebUI: 10)."""

UNNAMED = "upstream"
"""The owner of the models of an upstream that the configuration gives no name."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The models that upstreams list, as OpenAI's model objects, and what kept one of them from listing its own."""

    models: list[dict[str, Any]] = field(default_factory=list)
    failure: OpenAISSEError | None = None


def read_models(data: bytes) -> list[dict[str, Any]]:
    """The model objects in the body of an upstream's answer: OpenAI's list, or a bare array of them (Together).

    `null` in place of the models counts as none (Ollama without models), and an entry without an id is left out. Raises
    `UpstreamError` for anything else, and if no entry has an id.
    """
    try:
        entries = json.decode(data)
    except ValueError:
        entries = ""
    if isinstance(entries, dict):
        entries = entries.get("data", "")
    models = with_ids(entries) if isinstance(entries, list) else []
    if not models and entries not in ([], None):
        raise UpstreamError("The upstream's list of models cannot be read.")
    return models


def with_ids(entries: Iterable[Any]) -> list[dict[str, Any]]:
    """The *entries* that are objects with an id."""
    return [each for each in entries if isinstance(each, dict) and each.get("id") and isinstance(each["id"], str)]


def model_object(name: str, owner: str) -> dict[str, Any]:
    """OpenAI's model object for a model that no upstream has described. *owner* is shown to callers."""
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": owner}


_STARTED = int(time.time())
