"""Authentication: how an auth hook is asked for the caller of a request, within its time limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Protocol

from quart import has_websocket_context, request
from werkzeug.exceptions import HTTPException

from quart_openai_sse.auth.connection import has_ambient_credentials
from quart_openai_sse.auth.ids import is_id, to_id
from quart_openai_sse.auth.origin import SAFE_METHODS, check_origin
from quart_openai_sse.errors import AuthenticationRequired, OpenAISSEError, PermissionDenied
from quart_openai_sse.functions import name_of, runs_on_loop
from quart_openai_sse.principal import Principal

logger = logging.getLogger("quart_openai_sse")

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
    except HTTPException as error:
        if _status(error) == 403:
            raise PermissionDenied(error.description or "") from error
        if not is_nobody(error):
            raise
        caller = None
    if caller is None:
        raise AuthenticationRequired("No valid credentials were sent.")
    if isinstance(caller, bool) or not isinstance(caller, Principal | str | int):
        raise TypeError(f"An auth hook must return a Principal, an id or None, not {type(caller).__name__}.")
    principal = caller if isinstance(caller, Principal) and caller.cookie is not None else to_principal(caller)
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
    """The caller that *hook* returns, with `None` for every value that means no caller.

    These are `False`, `""`, and a principal or text whose id is invalid, which a warning reports.
    """
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
    if caller is False or caller == "":
        return None
    if isinstance(caller, Principal):
        valid = caller.anonymous or is_id(caller.id)
    else:
        valid = isinstance(caller, bool) or not isinstance(caller, str | int) or to_id(caller) is not None
    if not valid:
        logger.warning(
            "auth hook %r recognised no caller: its id is not a text of 1 to 255 printable characters", name_of(hook)
        )
    return caller if valid else None


def is_nobody(error: Exception) -> bool:
    """Whether *error*, raised by an auth hook, says that it recognises no caller: an abort or error with status 401.

    A `ServiceRequired` says more than that: no other hook may recognise the caller.
    """
    return _status(error) == 401 and not isinstance(error, ServiceRequired)


def _status(error: Exception) -> int | None:
    if isinstance(error, HTTPException):  # `abort(response)` raises one without a code
        return error.code if error.response is None else getattr(error.response, "status_code", None)
    return error.status if isinstance(error, OpenAISSEError) else None


class ServiceRequired(AuthenticationRequired):
    """The request acts for a user without the credentials of a service."""


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what *function* returns: a function of the app that an auth hook calls.

    A coroutine function runs on the event loop, any other one in a thread; the time limit is that of the hook.
    """
    question = current_question.get()
    with nullcontext() if question is None else question.running(function):
        if runs_on_loop(function):
            return await function(*args)
        in_thread = asyncio.to_thread if question is None else question.calls.run_in_thread
        result = await in_thread(function, *args)
        return await result if isawaitable(result) else result


def at_once(hook: Authenticate) -> Authenticate:
    """Marks a hook that awaits nothing: it needs no time limit, and no task of its own."""
    vars(hook)["answers_at_once"] = hook
    return hook


def waits(hook: Authenticate) -> bool:
    """Whether *hook* may wait for something, so that it needs a time limit."""
    # The mark names its function, since `functools.wraps` copies it to a decorator's function, which may wait.
    return getattr(hook, "answers_at_once", None) is not hook


def to_principal(caller: Principal | str | int) -> Principal:
    """The principal for what a hook returned. If the hook left `cookie` open, any ambient credential is the proof."""
    principal = caller if isinstance(caller, Principal) else Principal(str(caller))
    if principal.cookie is not None:
        return principal
    return replace(principal, cookie=has_ambient_credentials())
