"""The functions that an app passes to the extension: what is called, and its name."""

from __future__ import annotations

from functools import partial
from inspect import iscoroutinefunction, isfunction
from typing import Any


def called_function(function: Any) -> Any:
    """The function that runs when *function* is called: below `functools.partial`, or an object's `__call__`."""
    function = _below_partial(function)
    if isfunction(function) or not hasattr(function, "__call__") or isinstance(function, type):  # noqa: B004
        return function
    return getattr(function, "__func__", None) or type(function).__call__


def runs_on_loop(function: Any) -> bool:
    """Whether *function* is a coroutine function, or an object that is called like one."""
    return iscoroutinefunction(function) or iscoroutinefunction(called_function(function))


def name_of(function: Any) -> str:
    """The name of *function* in log lines and errors; of an object without a name, that of its class."""
    function = _below_partial(function)
    name: str = getattr(function, "__name__", None) or type(function).__name__
    return name


def _below_partial(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function
