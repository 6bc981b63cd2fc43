"""Mistakes in an app's code: each is refused where it is made, by an error that says what to do."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import create_autospec

import pytest
from flask import Flask
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, allow_anonymous, bearer_tokens, first_of, quart_auth_user, session_user
from quart_openai_sse.auth import forward_auth, on_behalf_of
from quart_openai_sse.auth.jwt import jwt_bearer
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.formats import BaseFormat, Reading, SSEFormat
from quart_openai_sse.limits.starts import limit_starts
from quart_openai_sse.logs import Batch, End
from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import QUESTION, CreateApp, Serve

LOCAL = "http://127.0.0.1:9/v1"


@pytest.fixture
def ai() -> QuartOpenAISSE:
    return QuartOpenAISSE(auth=session_user(), base_url=LOCAL)


def plain(chat: Any) -> None:
    """A function that could be none of what is registered."""


async def coroutine(chat: Any) -> None:
    """As an async generator function without its yield is."""


def generator(chat: Any) -> Any:
    yield ""


async def async_generator(chat: Any) -> AsyncIterator[str]:
    yield "hello"


# Apps and factories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [Flask("x"), type("Shop", (Flask,), {})("x")])
def test_a_flask_app_is_told_of_mount(ai: QuartOpenAISSE, app: Any) -> None:
    told = (
        "QuartOpenAISSE needs a Quart app, and this is a Flask app. Pass a Quart app to it, and serve both apps "
        "together with quart_openai_sse.flask.mount."
    )
    for mistake in (lambda: ai.init_app(app), lambda: QuartOpenAISSE(app, auth=session_user(), base_url=LOCAL)):
        with pytest.raises(TypeError) as raised:
            mistake()
        assert str(raised.value) == told


def test_what_is_no_app_at_all_is_refused(ai: QuartOpenAISSE) -> None:
    with pytest.raises(TypeError, match=r"^QuartOpenAISSE needs a Quart app, not str\.$"):
        ai.init_app(__name__)


def test_a_subclass_of_quart_is_a_quart_app(ai: QuartOpenAISSE) -> None:
    app = type("Shop", (Quart,), {})("x")
    ai.init_app(app)
    assert ai.config(app).base_url == LOCAL


@pytest.mark.parametrize("argument", ["upstream", "log", "client"])
def test_an_upstream_a_log_and_a_client_are_made_by_functions(argument: str) -> None:
    with pytest.raises(TypeError) as raised:
        QuartOpenAISSE(auth=session_user(), **{argument: ScriptedUpstream("hello")})
    assert str(raised.value) == (
        f"{argument} must be a function that is given the Config and returns the {argument}, not ScriptedUpstream."
    )


def test_an_unknown_option_is_an_error_of_the_call_that_has_it() -> None:
    with pytest.raises(ConfigurationError) as raised:
        QuartOpenAISSE(auth=session_user(), keepalve=5, upstraem=None)
    assert str(raised.value) == (
        "Unknown options: keepalve (did you mean keepalive?), upstraem (did you mean upstream?)."
    )


def test_one_name_is_no_collection_of_names(ai: QuartOpenAISSE) -> None:
    with pytest.raises(ConfigurationError, match=r"^models must be a collection of names: write models={'support'}\.$"):
        ai.blueprint("api", url_prefix="/api", models="support")
    for mistake in (
        lambda: ai.blueprint("api", url_prefix="/api", routes="chat"),
        lambda: QuartOpenAISSE(auth=session_user(), routes="chat"),
    ):
        with pytest.raises(ConfigurationError, match=r"write routes={'chat'}\.$"):
            mistake()


# Auth hooks ---------------------------------------------------------------------------------------------------------

FACTORIES: dict[Callable[..., Any], str] = {
    session_user: "session_user()",
    quart_auth_user: "quart_auth_user()",
    allow_anonymous: "allow_anonymous()",
    bearer_tokens: "bearer_tokens(...)",
    first_of: "first_of(...)",
    forward_auth: "forward_auth(...)",
    on_behalf_of: "on_behalf_of(...)",
    jwt_bearer: "jwt_bearer(...)",
}


@pytest.mark.parametrize(("factory", "call"), FACTORIES.items(), ids=FACTORIES.values())
def test_a_function_that_creates_a_hook_is_no_hook(ai: QuartOpenAISSE, factory: Callable[..., Any], call: str) -> None:
    for mistake in (
        lambda: QuartOpenAISSE(Quart("x"), auth=factory, base_url=LOCAL),
        lambda: ai.blueprint("api", url_prefix="/api", auth=factory),
    ):
        with pytest.raises(ConfigurationError) as raised:
            mistake()
        assert str(raised.value) == (
            f"auth={factory.__name__} is a function that creates an auth hook: write auth={call}."
        )


async def whoever(request: Any) -> str:
    return "ann"


NO_HOOKS = {
    "text": ("alice", "auth must be a coroutine function without arguments, not str."),
    "a dictionary": ({"s3cret": "ann"}, "auth must be a coroutine function without arguments, not dict."),
    "a generator": (generator, "auth must be a coroutine function without arguments, not a generator function."),
    "an async generator": (
        async_generator,
        "auth must be a coroutine function without arguments, not an async generator function.",
    ),
    "an argument": (whoever, "The auth hook whoever must not need arguments: it is called without any."),
}


@pytest.mark.parametrize(("hook", "told"), NO_HOOKS.values(), ids=NO_HOOKS)
def test_what_can_be_no_auth_hook_is_refused(ai: QuartOpenAISSE, hook: Any, told: str) -> None:
    for mistake in (
        lambda: QuartOpenAISSE(auth=hook),
        lambda: ai.blueprint("api", url_prefix="/api", auth=hook),
    ):
        with pytest.raises(ConfigurationError) as raised:
            mistake()
        assert str(raised.value) == told


class Hook:
    """An auth hook in the form of an object."""

    async def __call__(self, user: str = "ann") -> str:
        return user


@pytest.mark.parametrize(
    ("hook", "user"),
    [(Hook(), "ann"), (functools.partial(Hook(), "bob"), "bob"), (lambda: Hook()(), "ann"), (Hook().__call__, "ann")],
    ids=["object", "partial", "lambda", "method"],
)
async def test_whatever_returns_an_awaitable_is_a_hook(
    create_app: CreateApp, serve: Serve, hook: Any, user: str
) -> None:
    app, ai = create_app(auth=hook)

    @app.get("/me")
    async def me() -> str:
        return (await ai.principal()).id

    assert (await (await serve(app)).get("/me")).text == user


# Models and transforms ----------------------------------------------------------------------------------------------


class Agent:
    """A model in the form of an object."""

    async def __call__(self, chat: Any, greeting: str = "hello") -> AsyncIterator[str]:
        yield greeting

    async def run(self, chat: Any) -> AsyncIterator[str]:
        yield "hello"

    async def answer(self, chat: Any) -> str:
        return "hello"


class Answer:
    """An object whose call is a coroutine."""

    async def __call__(self, chat: Any) -> str:
        return "hello"


NO_GENERATORS = {
    "a plain function": (plain, "plain is a plain function"),
    "a lambda": (lambda chat: async_generator(chat), "<lambda> is a plain function"),
    "a coroutine function": (coroutine, "coroutine is a coroutine function"),
    "a generator function": (generator, "generator is a generator function"),
    "a partial": (functools.partial(coroutine), "coroutine is a coroutine function"),
    "a method": (Agent().answer, "answer is a coroutine function"),
    "an object": (Answer(), "Answer is a coroutine function"),
    "a class": (Agent, "Agent is a class"),
    "a builtin": (print, "print is builtin_function_or_method"),
    "what was called": (async_generator(None), "not async_generator"),
    "text": ("hello", "not str"),
}


@pytest.mark.parametrize(("function", "told"), NO_GENERATORS.values(), ids=NO_GENERATORS)
def test_a_model_and_a_transform_are_async_generator_functions(ai: QuartOpenAISSE, function: Any, told: str) -> None:
    needed = f"must be an async generator function (async def, with yield){',' if 'not' in told else ':'} {told}."
    with pytest.raises(TypeError) as raised:
        ai.model("support")(function)
    assert str(raised.value) == f"The model 'support' {needed}"
    with pytest.raises(TypeError) as raised:
        ai.transform(function)
    assert str(raised.value) == f"A transform {needed}"
    assert (ai.hooks.app_models, ai.hooks.transforms) == ({}, [])


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as apps have them."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


GENERATORS = {
    "an async generator function": async_generator,
    "a partial": functools.partial(functools.partial(Agent(), greeting="hello")),
    "an object": Agent(),
    "a method": Agent().run,
    "a decorated one": logged(async_generator),
    "a decorated method": logged(Agent().run),
}


@pytest.mark.parametrize("function", GENERATORS.values(), ids=GENERATORS)
async def test_whatever_is_called_like_an_async_generator_function_is_a_model(
    create_app: CreateApp, serve: Serve, function: Any
) -> None:
    app, ai = create_app()
    assert ai.model("own")(function) is function
    ai.transform(passing)
    client = await serve(app)
    response = await client.post("/v1/chat/completions", json={"model": "own", "messages": QUESTION, "stream": True})
    assert (await read(response.content)).text == "hello"


async def passing(items: AsyncIterator[Any], chat: Any) -> AsyncIterator[Any]:
    async for item in items:
        yield item


def test_a_model_has_a_name(ai: QuartOpenAISSE) -> None:
    with pytest.raises(TypeError) as raised:
        ai.model(async_generator)
    assert str(raised.value) == 'ai.model needs a name: write @ai.model("async_generator") above async_generator.'
    with pytest.raises(TypeError, match=r"^ai\.model needs the name of the model as text, not int\.$"):
        ai.model(5)


def test_two_models_of_one_name_are_refused(ai: QuartOpenAISSE) -> None:
    ai.model("support")(async_generator)
    with pytest.raises(ConfigurationError) as raised:
        ai.model("support")(Agent())
    here = "tests.web.test_checks"
    assert str(raised.value) == (
        f"There are two models named 'support': {here}.async_generator and {here}.Agent.__call__."
    )
    ai.model("another")(Agent())
    assert ai.hooks.app_models["support"] is async_generator


def test_an_app_factory_may_register_its_models_each_time(ai: QuartOpenAISSE) -> None:
    def create_app() -> Quart:
        app = Quart("x")
        ai.init_app(app)

        @ai.model("support")
        async def support(chat: Any) -> AsyncIterator[str]:
            yield app.name

        ai.model("module-level")(async_generator)
        ai.model("partial")(functools.partial(async_generator))
        ai.model("object")(Agent())
        return app

    create_app()
    first = dict(ai.hooks.app_models)
    create_app()
    assert ai.hooks.app_models.keys() == first.keys()
    assert ai.hooks.app_models["support"] is not first["support"]


SOURCE = """
@ai.model("support")
async def support(chat):
    yield "hello"
"""


def load(name: str, file: str, source: str, ai: QuartOpenAISSE) -> None:
    """Runs a module of this name from this file."""
    module = types.ModuleType(name)
    module.__dict__["ai"] = ai
    exec(compile(source, file, "exec"), module.__dict__)


AGAIN = {
    "reloaded after an edit": ("shop.ai", "/shop/ai.py"),
    "run as a script and imported": ("__main__", "/shop/ai.py"),
    "another cell of a notebook": ("shop.ai", "/tmp/ipykernel_1/2.py"),
}


@pytest.mark.parametrize(("name", "file"), AGAIN.values(), ids=AGAIN)
def test_a_module_may_run_again(ai: QuartOpenAISSE, name: str, file: str) -> None:
    load("shop.ai", "/shop/ai.py", SOURCE, ai)
    first = ai.hooks.app_models["support"]
    load(name, file, f"\n\n{SOURCE}", ai)
    assert ai.hooks.app_models["support"] is not first


def test_functions_of_one_name_in_two_modules_are_two_models(ai: QuartOpenAISSE) -> None:
    load("shop.ai", "/shop/ai.py", SOURCE, ai)
    with pytest.raises(ConfigurationError, match=r"'support': shop\.ai\.support and blog\.ai\.support\.$"):
        load("blog.ai", "/blog/ai.py", SOURCE, ai)


# Other hooks --------------------------------------------------------------------------------------------------------

HOOKS = ["prepare", "transform", "on_end", "observe"]


@pytest.mark.parametrize("name", HOOKS)
def test_a_decorator_has_no_parentheses(ai: QuartOpenAISSE, name: str) -> None:
    with pytest.raises(TypeError) as raised:
        getattr(ai, name)()
    assert str(raised.value) == f"ai.{name} needs a function: write @ai.{name} above it, without parentheses."


@pytest.mark.parametrize("name", ["prepare", "on_end", "observe"])
def test_a_hook_is_a_function(ai: QuartOpenAISSE, name: str) -> None:
    for value, kind in ((None, "NoneType"), ("store", "str"), ([plain], "list")):
        with pytest.raises(TypeError) as raised:
            getattr(ai, name)(value)
        assert str(raised.value) == f"ai.{name} needs a function, not {kind}."


@pytest.mark.parametrize("name", ["prepare", "on_end", "observe"])
def test_a_hook_that_yields_would_not_run(ai: QuartOpenAISSE, name: str) -> None:
    with pytest.raises(TypeError) as raised:
        getattr(ai, name)(generator)
    assert str(raised.value) == (f"ai.{name} needs a function without yield: generator is a generator function.")
    with pytest.raises(TypeError, match=r"without yield: Agent is an async generator function\.$"):
        getattr(ai, name)(Agent())


@pytest.mark.parametrize("name", ["prepare", "on_end", "observe"])
def test_any_other_function_is_a_hook_and_is_returned_as_it_is(ai: QuartOpenAISSE, name: str) -> None:
    for function in (plain, coroutine, Answer(), functools.partial(plain), print):
        assert getattr(ai, name)(function) is function
        assert getattr(ai, name)(function=function) is function


def test_a_class_in_place_of_a_hook_is_refused() -> None:
    class Login:
        async def __call__(self) -> str:
            return "ann"

    told = "auth=Login is a class: write auth=Login(...)."
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        QuartOpenAISSE(auth=Login, base_url=LOCAL)  # type: ignore[arg-type]
    QuartOpenAISSE(auth=Login(), base_url=LOCAL)


def test_limit_starts_is_no_hook_but_creates_one(ai: QuartOpenAISSE) -> None:
    with pytest.raises(TypeError, match=re.escape("ai.prepare: limit_starts is a function that creates a hook")):
        ai.prepare(limit_starts)  # type: ignore[type-var]


def test_names_with_commas_are_suggested_one_by_one(ai: QuartOpenAISSE) -> None:
    with pytest.raises(ConfigurationError, match=re.escape("write models={'a', 'b'}.")):
        ai.blueprint("api", url_prefix="/api", models="a, b")


def with_database(function: Callable[[dict[str, str]], Any]) -> Callable[[], Any]:
    """A decorator of an app that passes an argument."""

    @functools.wraps(function)
    async def hook() -> Any:
        return await function({"user": "ann"})

    return hook


@with_database
async def decorated(database: dict[str, str]) -> str:
    return database["user"]


async def simple() -> str:
    return "ann"


@types.coroutine
def old_style() -> Any:
    yield from ()
    return "ann"


@pytest.mark.parametrize(
    "hook",
    [decorated, old_style, create_autospec(simple, return_value="ann")],
    ids=["a decorator that passes an argument", "types.coroutine", "a mock"],
)
async def test_a_hook_that_can_be_called_and_awaited_is_one(create_app: CreateApp, serve: Serve, hook: Any) -> None:
    app, ai = create_app(ScriptedUpstream("hello"), auth=hook)
    ai.prepare(lambda body, principal: None)
    client = await serve(app, headers={})
    body = {"model": "m", "messages": QUESTION, "stream": True}
    assert (await read((await client.post("/v1/chat/completions", json=body)).content)).text == "hello"


# Formats ------------------------------------------------------------------------------------------------------------


class Shouted(SSEFormat):
    """A format as it should be."""

    def encode(self, batch: Batch) -> bytes:
        return b""

    def end(self, end: End) -> bytes:
        return b""


def shout(reading: Reading) -> Shouted:
    return Shouted(reading)


def test_a_format_has_a_name_and_it_is_free(ai: QuartOpenAISSE) -> None:
    with pytest.raises(TypeError) as raised:
        ai.format(Shouted)
    assert str(raised.value) == 'ai.format needs a name: write @ai.format("Shouted") above Shouted.'
    for name in ("", "a b", "a/b", "ä"):
        with pytest.raises(ConfigurationError, match=r"^A format's name has letters, digits, dots, dashes and"):
            ai.format(name)(Shouted)
    with pytest.raises(ConfigurationError) as refused:
        ai.format("text")(Shouted)
    assert str(refused.value) == "The extension has a format named 'text' already: choose another name."
    assert ai.format("shout")(Shouted) is Shouted
    with pytest.raises(ConfigurationError) as refused:
        ai.format("shout")(shout)
    here = "tests.web.test_checks"
    assert str(refused.value) == f"There are two formats named 'shout': {here}.Shouted and {here}.shout."


def test_the_same_format_may_be_registered_again(ai: QuartOpenAISSE) -> None:
    """As in an app factory, whose classes are new ones each time."""

    def create() -> type[SSEFormat]:
        @ai.format("shout")
        class Local(Shouted):
            pass

        return Local

    create()
    second = create()
    assert ai._formats.by_name["shout"] is second


def format_with(**members: Any) -> type[SSEFormat]:
    return type("Odd", (Shouted,), members)


NO_FORMATS = {
    "an instance": (
        Shouted(Reading()),
        "The format 'odd' must be a class, or a function that creates a format, not Shouted.",
    ),
    "a coroutine function": (
        coroutine,
        "The format 'odd' must be a class, or a function that creates a format, not a coroutine function.",
    ),
    "no argument": (lambda: None, "The format 'odd' must take one argument: the Reading that it is created for."),
    "two arguments": (
        lambda a, b: None,
        "The format 'odd' must take one argument: the Reading that it is created for.",
    ),
    "returns nothing": (
        lambda reading: None,
        "The format 'odd' has no headers, heartbeat, replays, sharing, head, encode, end, refusal: "
        "see quart_openai_sse.formats.Format.",
    ),
    "no headers": (
        type("Odd", (BaseFormat,), {"encode": None, "end": None}),
        "The format 'odd' has no headers: see quart_openai_sse.formats.Format.",
    ),
    "no content type": (format_with(headers={}), "headers of the format 'odd' must have a Content-Type."),
    "async": (format_with(end=coroutine), "end of the format 'odd' must be a plain function (def, without yield)."),
    "a generator": (
        format_with(encode=generator),
        "encode of the format 'odd' must be a plain function (def, without yield).",
    ),
    "head is bytes": (format_with(head=b""), "head of the format 'odd' must be a plain function (def, without yield)."),
    "heartbeat is text": (format_with(heartbeat=":\n"), "heartbeat of the format 'odd' must be bytes, not str."),
    "sharing is a list": (format_with(sharing=[]), "sharing of the format 'odd' must be hashable, or None."),
}


@pytest.mark.parametrize(("create", "told"), NO_FORMATS.values(), ids=NO_FORMATS)
def test_what_creates_no_format_is_refused_in_words(ai: QuartOpenAISSE, create: Any, told: str) -> None:
    with pytest.raises(TypeError) as raised:
        ai.format("odd")(create)
    assert str(raised.value) == told
    assert "odd" not in ai._formats.by_name
