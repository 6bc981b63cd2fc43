"""The models that a caller may use: the app's own, those that the configuration names, and the upstream's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from quart_openai_sse.principal import Principal
from quart_openai_sse.relay.relay import Relay
from quart_openai_sse.upstreams.listing import Listing, model_object

Offered = Collection[str] | None
"""The models that a blueprint offers; `None`: the app's own, and those that the option `models` allows."""


def known_models(relay: Relay, principal: Principal, offered: Offered) -> list[dict[str, Any]]:
    """The models that *principal* may use and that are known without the upstream."""
    own = relay.hooks.app_models
    named = _named(relay, offered) or ()
    known = [model_object(name, "app") for name in own if offered is None or name in offered]
    known += [model_object(name, relay.upstream.public_name) for name in named if name not in own]
    return [model for model in known if principal.may_ask(model["id"])]


async def upstream_models(relay: Relay, principal: Principal, offered: Offered) -> Listing:
    """The upstream's models that *principal* may use. If the models are named, there are none, and it is not asked."""
    if _named(relay, offered) is not None:
        return Listing()
    listing = await relay.upstream.list_models(principal=principal)
    own = relay.hooks.app_models
    models = [each for each in listing.models if each["id"] not in own and principal.may_ask(each["id"])]
    return Listing(models, listing.failure)


def find_model(name: str, models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The model object of the model *name*, or `None`."""
    return next((model for model in models if model["id"] == name), None)


def _named(relay: Relay, offered: Offered) -> Offered:
    return offered if offered is not None else relay.config.models
