"""Authentication: how an auth hook is asked for the caller of a request, within its time limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Protocol

from quart import has_websocket_context, request
from werkzeug.exceptions import Forbidden, Unauthorized

from quart_openai_sse.auth.connection import current_connection
from quart_openai_sse.auth.origin import SAFE_METHODS, check_origin
from quart_openai_sse.errors import AuthenticationRequired, PermissionDenied
from quart_openai_sse.functions import name_of
from quart_openai_sse.principal import Principal

Authenticate = Callable[[], Awaitable[Principal | str | int | None]]
"""A coroutine function that reads `quart.request` or `quart.session` and returns the caller: a `Principal` or an id,
or `None` if it does not recognise the caller. It may raise an `OpenAISSEError`, or abort with 401 or 403."""


class AuthCalls(Protocol):
    """The limits of an auth hook."""

    async def result(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *hook* does. Raises `AuthUnavailable` after the time limit."""
        ...

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns or raises what *function* does in a thread."""
        ...


async def authenticate(
    hook: Authenticate, *, trusted_origins: Collection[str] = (), calls: AuthCalls | None = None
) -> Principal:
    """The principal that makes the current request or opens the current websocket, as *hook* recognises it.

    Raises `AuthenticationRequired` if *hook* returns no caller, `PermissionDenied` if it aborts with 403,
    `AuthUnavailable` if it takes longer than *calls* allows, `OriginDenied` if a page of another origin uses a cookie
    for a websocket or with a method that changes something, and `TypeError` if *hook* is not a coroutine function or
    returns something else.
    """
    try:
        caller = await (ask(hook) if calls is None or not waits(hook) else Question(hook, calls).caller())
    except Unauthorized:
        caller = None
    except Forbidden as error:
        raise PermissionDenied(error.description or "") from error
    if caller is None:
        raise AuthenticationRequired("No valid credentials were sent.")
    if isinstance(caller, bool) or not isinstance(caller, Principal | str | int):
        raise TypeError(f"An auth hook must return a Principal, an id or None, not {type(caller).__name__}.")
    principal = to_principal(caller)
    # A browser lets a page of any origin open a websocket, with the cookies (RFC 6455, section 10.2).
    if principal.cookie and (has_websocket_context() or request.method not in SAFE_METHODS):
        check_origin(trusted_origins)
    return principal


class Question:
    """One call of an auth hook with a time limit.

    Its `__name__`, which log lines show, is that of the function that is running: a hook in `first_of`, or the `load`
    of `session_user`.
    """

    def __init__(self, hook: Authenticate, calls: AuthCalls) -> None:
        self.__name__ = name_of(hook)
        self.calls = calls
        self._hook = hook

    async def caller(self) -> Principal | str | int | None:
        """The caller that the hook returns. Raises `AuthUnavailable` after the time limit."""
        token = current_question.set(self)
        try:
            caller: Principal | str | int | None = await self.calls.result(self)
            return caller
        finally:
            current_question.reset(token)

    async def __call__(self) -> Principal | str | int | None:
        """Asks the hook."""
        return await ask(self._hook)

    @contextmanager
    def running(self, function: Callable[..., Any]) -> Iterator[None]:
        """Shows the name of *function* within the block."""
        outer, self.__name__ = self.__name__, name_of(function)
        try:
            yield
        finally:
            self.__name__ = outer


current_question: ContextVar[Question | None] = ContextVar("quart_openai_sse_auth_question", default=None)
"""The question that is being asked; `None` if the app calls a hook by itself."""


async def ask(hook: Authenticate) -> Principal | str | int | None:
    """The caller that *hook* returns, with `None` for every value that means no caller (`False`, `""`)."""
    question = current_question.get()
    with nullcontext() if question is None else question.running(hook):
        answer = hook()
        if not isawaitable(answer):
            name = name_of(hook)
            raise TypeError(
                f"The auth hook {name} returned {type(answer).__name__} instead of an awaitable. "
                f"A hook must be a coroutine function: write `async def {name}(): ...`."
            )
        caller = await answer
    return None if caller is False or caller == "" else caller


def at_once(hook: Authenticate) -> Authenticate:
    """Marks a hook that awaits nothing: it needs no time limit, and no task of its own."""
    vars(hook)["answers_at_once"] = hook
    return hook


def waits(hook: Authenticate) -> bool:
    """Whether *hook* may wait for something, so that it needs a time limit."""
    # The mark names its function, since `functools.wraps` copies it to a decorator's function, which may wait.
    return getattr(hook, "answers_at_once", None) is not hook


def to_principal(caller: Principal | str | int) -> Principal:
    """The principal for what a hook returned. If the hook left `cookie` open, any cookie counts as the proof."""
    principal = caller if isinstance(caller, Principal) else Principal(str(caller))
    if principal.cookie is not None:
        return principal
    return replace(principal, cookie="Cookie" in current_connection().headers)
