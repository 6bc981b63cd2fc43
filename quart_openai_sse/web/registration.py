"""The decorators with which an app registers models, hooks and formats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

from quart_openai_sse.formats.registry import CreateFormat, Formats
from quart_openai_sse.observers import Observer, StreamEvent
from quart_openai_sse.principal import Principal
from quart_openai_sse.producers.chat import Chat
from quart_openai_sse.relay.hooks import Hooks, OnEnd, Prepare, StreamEnd
from quart_openai_sse.web import checks

# Type checkers name these when a decorated function returns something else.
FormatT = TypeVar("FormatT", bound=CreateFormat)
AsyncIteratorT = TypeVar("AsyncIteratorT", bound=AsyncIterator[Any])
PreparedT = TypeVar("PreparedT", bound=Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None)
ReturnT = TypeVar("ReturnT")


class Registration:
    """The decorators of `QuartOpenAISSE`. Each checks a function or a class, and returns it unchanged."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self._formats = Formats()

    def model(self, name: str) -> Callable[[Callable[[Chat], AsyncIteratorT]], Callable[[Chat], AsyncIteratorT]]:
        """Registers an async generator function `(chat)` as the model *name*.

        It yields strings, chunks (mappings or objects of an SDK) and app events (`Event`).
        """
        checks.check_name("model", name)

        def register(function: Callable[[Chat], AsyncIteratorT]) -> Callable[[Chat], AsyncIteratorT]:
            checks.check_model(name, function, self.hooks.app_models.get(name))
            self.hooks.app_models[name] = function
            return function

        return register

    def format(self, name: str) -> Callable[[FormatT], FormatT]:
        """Registers a class of formats, or a function `(reading)` that creates one, as the format *name*.

        See `quart_openai_sse.formats.Format`. It is called once here, with a `Reading` without a stream.
        """
        checks.check_name("format", name)

        def register(create: FormatT) -> FormatT:
            checks.check_format(name, create, self._formats.by_name.get(name))
            self._formats.by_name[name] = create
            return create

        return register

    @checks.needs_function
    def prepare(
        self, function: Callable[[dict[str, Any], Principal], PreparedT]
    ) -> Callable[[dict[str, Any], Principal], PreparedT]:
        """Registers a function `(body, principal)` that may return another body, or refuse the request by raising.

        A coroutine function runs on the event loop, any other function in a thread, with the request's context. After
        `prepare_timeout` seconds the request is refused with `HookTimeout` (503). If it is an object with a coroutine
        method `aclose`, that is awaited when the server ends, on each event loop.
        """
        checks.check_hook("prepare", function)
        self.hooks.prepare.append(cast(Prepare, function))
        return function

    @checks.needs_function
    def transform(
        self, function: Callable[[AsyncIterator[Any], Chat], AsyncIteratorT]
    ) -> Callable[[AsyncIterator[Any], Chat], AsyncIteratorT]:
        """Registers a `Transform`: an async generator function between what produces a stream and its log."""
        checks.check_generator("A transform", function)
        self.hooks.transforms.append(function)
        return function

    @checks.needs_function
    def on_end(self, function: Callable[[StreamEnd], ReturnT]) -> Callable[[StreamEnd], ReturnT]:
        """Registers a function that is given every stream's `StreamEnd` before its readers see the end.

        A coroutine function runs on the event loop, any other function in a thread. After `on_end_timeout` seconds the
        readers see the end, and the function continues in the background.
        """
        checks.check_hook("on_end", function)
        self.hooks.on_end.append(cast(OnEnd, function))
        return function

    @checks.needs_function
    def observe(self, function: Callable[[StreamEvent], ReturnT]) -> Callable[[StreamEvent], ReturnT]:
        """Registers an `Observer` of every `StreamEvent`: a coroutine function, or a function that runs in a thread."""
        checks.check_hook("observe", function)
        self.hooks.observers.append(cast(Observer, function))
        return function
