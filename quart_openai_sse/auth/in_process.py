"""The principal of a request that code in this process makes; no auth hook is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from quart import Quart, current_app, has_request_context, request

from quart_openai_sse.auth.authentication import Authenticate, ask, at_once, waits
from quart_openai_sse.functions import name_of
from quart_openai_sse.principal import Principal

CALLER = "quart_openai_sse.caller"
"""The key in the ASGI scope of a request's `Caller`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal of a request, and the instance and the app that the request is for.

    Whatever a client sends, a server puts only text, bytes, numbers and containers of them into a scope. Only code in
    this process can put an object of this class there.
    """

    principal: Principal
    instance: str
    app: Quart


def admit(hook: Authenticate, instance: str) -> Authenticate:
    """The auth hook *hook*, which is not asked if the request has a `Caller` for this *instance* in the current app."""

    async def admitted() -> Principal | str | int | None:
        caller = request.scope.get(CALLER) if has_request_context() else None
        # An app may pass a request on to another app, with its scope.
        if isinstance(caller, Caller) and caller.instance == instance and caller.app is _current_app():
            return caller.principal
        return await ask(hook)

    admitted.__name__ = name_of(hook)
    return admitted if waits(hook) else at_once(admitted)


def _current_app() -> Quart:
    return current_app._get_current_object()
