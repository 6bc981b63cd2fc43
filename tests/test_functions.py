"""The functions that an app passes: which of them run on the event loop, and what they are called in messages."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from quart_openai_sse.functions import name_of, runs_on_loop


async def in_a_coroutine(*args: Any) -> None:
    pass


class Called:
    async def __call__(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("hook", "on_loop"),
    {
        "a coroutine function": (in_a_coroutine, True),
        "a part of one": (functools.partial(in_a_coroutine, 1), True),
        "an object that is called like one": (Called(), True),
        "a method": (Called().__call__, True),
        "a plain function": (len, False),
        "a lambda": (lambda *args: in_a_coroutine(*args), False),
        "an object that is called like a plain function": (functools.lru_cache(len), False),
    }.values(),
)
def test_only_coroutine_functions_run_on_the_event_loop(hook: Any, on_loop: bool) -> None:
    assert runs_on_loop(hook) is on_loop


@pytest.mark.parametrize(
    ("function", "name"),
    {
        "a function": (in_a_coroutine, "in_a_coroutine"),
        "a part of a part of one": (functools.partial(functools.partial(in_a_coroutine, 1), 2), "in_a_coroutine"),
        "an object": (Called(), "Called"),
        "a part of an object": (functools.partial(Called()), "Called"),
        "a method": (Called().__call__, "__call__"),
        "a class": (Called, "Called"),
    }.values(),
)
def test_a_function_has_a_name_and_an_object_that_of_its_class(function: Any, name: str) -> None:
    assert name_of(function) == name
