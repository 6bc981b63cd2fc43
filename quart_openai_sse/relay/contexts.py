"""The context variables that a hook sets, although it runs in a task or a thread of its own."""

from __future__ import annotations

from contextvars import Context

_UNSET = object()


def adopt(context: Context) -> None:
    """Sets the variables that have another value in *context* to that value, as if its code had run here.

    Quart's own variables (`quart.app_ctx` …) stay as they are: an app context that a hook has pushed can be popped in
    the hook's context only.
    """
    for variable, value in context.items():
        if variable.get(_UNSET) is not value and not variable.name.startswith("quart."):
            variable.set(value)
