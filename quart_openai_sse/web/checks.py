"""Checks of what an app passes to the extension: a mistake is refused where it is made, and in words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection
from functools import wraps
from importlib.metadata import version
from inspect import (
    CO_ITERABLE_COROUTINE,
    Parameter,
    isasyncgenfunction,
    iscoroutinefunction,
    isfunction,
    isgeneratorfunction,
    signature,
    unwrap,
)
from typing import Any, TypeVar, cast

from quart import Quart

from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.formats import Reading
from quart_openai_sse.formats.registry import FORMATS
from quart_openai_sse.functions import called_function, name_of
from quart_openai_sse.principal import Principal

MethodT = TypeVar("MethodT", bound=Callable[..., Any])

_CREATE_HOOKS = ("quart_openai_sse.auth.", "quart_openai_sse.limits.")
"""The modules whose plain functions create hooks."""

_FORMAT_NAME = "[A-Za-z0-9._-]+"
_FORMAT_METHODS = ("head", "encode", "end", "refusal")
_FORMAT_MEMBERS = ("headers", "heartbeat", "replays", "sharing", *_FORMAT_METHODS)


def check_app(app: object) -> None:
    """Raises `TypeError` unless *app* is a Quart app."""
    if isinstance(app, Quart):
        return
    if any((cls.__module__, cls.__name__) == ("flask.app", "Flask") for cls in type(app).__mro__):
        raise TypeError(
            "QuartOpenAISSE needs a Quart app, and this is a Flask app. Pass a Quart app to it, and serve both apps "
            "together with quart_openai_sse.flask.mount."
        )
    raise TypeError(f"QuartOpenAISSE needs a Quart app, not {_kind(app)}.")


def check_server() -> None:
    """Raises `ConfigurationError` on a server that does not work with this version of Quart."""
    # After a response Quart 0.23 waits for http.disconnect, which gunicorn 27 does not send: each request keeps two
    # tasks, and a connection answers 16 requests and then none. gunicorn loads the module of its own worker only if
    # that is chosen, and sets the variable in each process.
    is_gunicorn = os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")
    if is_gunicorn and "gunicorn.workers.gasgi" in sys.modules and not version("quart").startswith("0.22."):
        raise ConfigurationError(
            "gunicorn's own ASGI worker does not work with Quart 0.23: a connection answers 16 requests and then none. "
            "Use uvicorn's: pip install uvicorn-worker, and --worker-class uvicorn_worker.UvicornWorker."
        )


def check_auth(hook: Any) -> None:
    """Raises `ConfigurationError` unless *hook* is `None` or can be an auth hook; functions that create hooks can't.

    Whether a hook returns an awaitable shows when it is called: `authenticate` raises `TypeError` if it does not.
    """
    if hook is None:
        return
    if _creates_hooks(hook):
        arguments = any(each.default is Parameter.empty for each in signature(hook).parameters.values())
        call = f"{hook.__name__}({'...' if arguments else ''})"
        raise ConfigurationError(f"auth={hook.__name__} is a function that creates an auth hook: write auth={call}.")
    if isinstance(hook, type):
        raise ConfigurationError(f"auth={hook.__name__} is a class: write auth={hook.__name__}(...).")
    if not callable(hook) or _yields(hook):
        raise ConfigurationError(f"auth must be a coroutine function without arguments, not {_kind(hook)}.")
    if _needs_arguments(hook):
        raise ConfigurationError(f"The auth hook {name_of(hook)} must not need arguments: it is called without any.")


def check_principal(principal: object) -> None:
    """Raises `TypeError` unless *principal* is a `Principal`."""
    if not isinstance(principal, Principal):
        raise TypeError(f"principal must be a Principal, such as chat.principal, not {_kind(principal)}.")


def check_collection(argument: str, names: Collection[str] | None) -> None:
    """Raises `ConfigurationError` for text in place of a collection of names: it would be one of single letters."""
    if isinstance(names, str):
        each = ", ".join(repr(name.strip()) for name in names.split(","))
        raise ConfigurationError(f"{argument} must be a collection of names: write {argument}={{{each}}}.")


def check_factory(argument: str, factory: object) -> None:
    """Raises `TypeError` unless *factory*, the value of *argument*, is `None` or can be called."""
    if factory is not None and not callable(factory):
        raise TypeError(
            f"{argument} must be a function that is given the Config and returns the {argument}, not {_kind(factory)}."
        )


def needs_function(method: MethodT) -> MethodT:
    """For a decorator: `@ai.on_end()`, with parentheses, raises a `TypeError` that says to leave them out."""
    name = method.__name__

    @wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            raise TypeError(f"ai.{name} needs a function: write @ai.{name} above it, without parentheses.")
        return method(self, *args, **kwargs)

    return cast(MethodT, checked)


def check_hook(name: str, hook: object) -> None:
    """Raises `TypeError` unless *hook* can be called, and is no generator function, which would not run."""
    if not callable(hook):
        raise TypeError(f"ai.{name} needs a function, not {_kind(hook)}.")
    if _creates_hooks(hook):
        raise TypeError(f"ai.{name}: {name_of(hook)} is a function that creates a hook: write {name_of(hook)}(...).")
    if _yields(called_function(hook)):
        raise TypeError(f"ai.{name} needs a function without yield: {name_of(hook)} is {_kind(hook)}.")


def check_generator(what: str, function: object) -> None:
    """Raises `TypeError` unless *function* is an async generator function, or an object that is called like one."""
    if not _generates(function):
        given = f": {name_of(function)} is {_kind(function)}" if callable(function) else f", not {_kind(function)}"
        raise TypeError(f"{what} must be an async generator function (async def, with yield){given}.")


def check_model(name: object, function: object, registered: object) -> None:
    """Raises `TypeError` unless *function* can be the model *name*; `ConfigurationError` if another one *registered*.

    The same `def` may run again, as in an app factory, or in a module that is reloaded: the last one counts.
    """
    check_generator(f"The model {name!r}", function)
    if registered is not None and not _same_definition(registered, function):
        raise ConfigurationError(f"There are two models named {name!r}: {_place(registered)} and {_place(function)}.")


def check_name(what: str, name: object) -> None:
    """Raises `TypeError` unless *name* is text: `@ai.model`, without parentheses, passes the function."""
    if callable(name):
        raise TypeError(f'ai.{what} needs a name: write @ai.{what}("{name_of(name)}") above {name_of(name)}.')
    if not isinstance(name, str):
        raise TypeError(f"ai.{what} needs the name of the {what} as text, not {_kind(name)}.")


def check_format(name: str, create: Any, registered: object) -> None:
    """Raises `TypeError` unless *create* creates a `Format`; `ConfigurationError` if *name* is taken or unusable.

    The same definition may run again, as for a model.
    """
    if not re.fullmatch(_FORMAT_NAME, name):
        raise ConfigurationError(
            f"A format's name has letters, digits, dots, dashes and underscores only, not {name!r}."
        )
    if name in FORMATS:
        raise ConfigurationError(f"The extension has a format named {name!r} already: choose another name.")
    what = f"The format {name!r}"
    if not callable(create) or iscoroutinefunction(called_function(create)) or _yields(called_function(create)):
        raise TypeError(f"{what} must be a class, or a function that creates a format, not {_kind(create)}.")
    if not _takes_one_argument(create):
        raise TypeError(f"{what} must take one argument: the Reading that it is created for.")
    if registered is not None and not _same_definition(registered, create):
        raise ConfigurationError(f"There are two formats named {name!r}: {_place(registered)} and {_place(create)}.")
    _check_made(name, create(Reading()))


def _check_made(name: str, made: Any) -> None:
    """Raises `TypeError` unless *made* is a `Format`."""
    if missing := [member for member in _FORMAT_MEMBERS if not hasattr(made, member)]:
        raise TypeError(f"The format {name!r} has no {', '.join(missing)}: see quart_openai_sse.formats.Format.")
    for method in _FORMAT_METHODS:
        function = getattr(made, method)
        if not callable(function) or iscoroutinefunction(function) or _yields(function):
            raise TypeError(f"{method} of the format {name!r} must be a plain function (def, without yield).")
    if "Content-Type" not in made.headers:
        raise TypeError(f"headers of the format {name!r} must have a Content-Type.")
    if not isinstance(made.heartbeat, bytes):
        raise TypeError(f"heartbeat of the format {name!r} must be bytes, not {_kind(made.heartbeat)}.")
    try:
        hash(made.sharing)
    except TypeError:
        raise TypeError(f"sharing of the format {name!r} must be hashable, or None.") from None


def _creates_hooks(hook: object) -> bool:
    """Whether it is one of our functions that create a hook, such as `session_user` and `limit_starts`."""
    return (
        isfunction(hook)
        and (hook.__module__ or "").startswith(_CREATE_HOOKS)
        and hook.__qualname__ == hook.__name__
        and not iscoroutinefunction(hook)
    )


def _yields(function: Any) -> bool:
    """Whether calling it only creates a generator; what `types.coroutine` decorates can be awaited."""
    code = getattr(function, "__code__", None)
    awaitable = code is not None and code.co_flags & CO_ITERABLE_COROUTINE
    return isasyncgenfunction(function) or (isgeneratorfunction(function) and not awaitable)


def _needs_arguments(hook: Callable[..., Any]) -> bool:
    try:
        signature(hook, follow_wrapped=False).bind()  # a decorator may pass arguments to the function it wraps
    except TypeError:
        return True
    except ValueError:  # a function in C, of which Python knows no signature
        return False
    return False


def _takes_one_argument(function: Callable[..., Any]) -> bool:
    try:
        signature(function).bind(object())
    except TypeError:
        return False
    except ValueError:  # in C
        return True
    return True


def _generates(function: object) -> bool:
    called = called_function(function)
    if not isfunction(called) or iscoroutinefunction(called) or isgeneratorfunction(called):
        return False
    # A decorator of the app's own may return a plain function that names the function it calls (functools.wraps).
    return isasyncgenfunction(called) or isasyncgenfunction(unwrap(called))


def _same_definition(one: object, other: object) -> bool:
    (name, module, file), (other_name, other_module, other_file) = _definition(one), _definition(other)
    # In a notebook each cell is a file of its own; `python app.py` and `import app` are two modules of one file.
    return name == other_name and (module == other_module or file == other_file)


def _definition(function: object) -> tuple[str, str, str]:
    """The qualified name of a `def` or a class, its module and its file."""
    called = unwrap(called_function(function))
    if isinstance(called, type):
        file = getattr(sys.modules.get(called.__module__), "__file__", None) or ""
        return called.__qualname__, called.__module__, file
    return called.__qualname__, called.__module__, called.__code__.co_filename


def _place(function: object) -> str:
    name, module, _ = _definition(function)
    return f"{module}.{name}"


def _kind(value: object) -> str:
    called = called_function(value)
    if isasyncgenfunction(called):
        return "an async generator function"
    if iscoroutinefunction(called):
        return "a coroutine function"
    if isgeneratorfunction(called):
        return "a generator function"
    if isinstance(value, type):
        return "a class"
    return "a plain function" if isfunction(called) else type(value).__name__
