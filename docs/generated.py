"""A Sphinx extension: the pages that are written from the code, so that they can't say anything else.

A line `<!-- generated: NAME -->` of a page is replaced by what `GENERATED[NAME]` returns, as Markdown.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from importlib import import_module
from textwrap import dedent
from typing import Any, cast

from sphinx.application import Sphinx

from quart_openai_sse import errors
from quart_openai_sse.config import KEY_PREFIX, Config
from quart_openai_sse.errors import ConfigurationError, OpenAISSEError
from quart_openai_sse.observers import StreamRecord

TYPES = {
    "Seconds": "seconds, 0 or more",
    "PositiveSeconds": "seconds, more than 0",
    "Count": "a whole number, 1 or more",
    "Annotated[int, msgspec.Meta(ge=0)]": "a whole number, 0 or more",
    "bool": "true or false",
    "str": "text",
    "Mapping[str, str]": "names and values",
    "tuple[str, ...]": "a list, or text with commas",
    "tuple[str, ...] | None": "a list, or text with commas, or `None`",
    "PositiveSeconds | None": "seconds, more than 0, or `None`",
    "Count | None": "a whole number, 1 or more, or `None`",
    "Mapping[str, PositiveSeconds]": "names and seconds, more than 0",
    "tuple[UpstreamConfig, ...]": "a list of objects",
    "str | ApiKey | None": "text, or a coroutine function",
    "LogCipher | None": "a pair of functions, or `None`",
}
SIDES = {
    "caller": "The caller's side",
    "server": "This server's side",
    "app": "The app's side",
    "upstream": "The upstream's side",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", describe_data)
    return {"parallel_read_safe": True}


def fill_in(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Fills the places of a page."""
    source[0] = re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), source[0])


def describe_data(_app: Sphinx, what: str, name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Gives a variable that a package re-exports the docstring literal of the module that defines it."""
    if what == "data":
        module, _, member = name.rpartition(".")
        text = variable_docstring(module, member)
        # reStructuredText needs a separator between a literal and a letter, as in `Event`s.
        text = re.sub(r"`[^`]+`(?=(\w?))", lambda found: found[0] + "\\ " * bool(found[1]), text)
        lines[:] = [*text.splitlines(), ""]  # Without this they are the docstring of the value's class.


def variable_docstring(module: str, member: str) -> str:
    """The docstring literal below the assignment of *member* in *module*, or where that imports it from; or ""."""
    previous: ast.stmt | None = None
    for node in ast.parse(inspect.getsource(import_module(module))).body:
        match node, previous:
            case ast.ImportFrom(module=str(origin)), _ if any(alias.name == member for alias in node.names):
                return variable_docstring(origin, member)
            case (
                ast.Expr(value=ast.Constant(value=str(text))),
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
            ) if name == member:
                return inspect.cleandoc(text)
        previous = node
    return ""


def options() -> str:
    """Every option of `Config`."""
    return "\n".join(_options())


def _options() -> Iterator[str]:
    members = {each.name: each for each in fields(Config)}
    for name, (type_, meaning) in described(Config).items():
        key = f"{KEY_PREFIX}{name.upper()}"
        yield f"`{name}`\n: {meaning}\n"
        kind = TYPES[type_]
        yield f"  {kind[0].upper()}{kind[1:]}; default {_default(members[name])}; `{key}`, `QUART_{key}`.\n"


def _default(member: Field[Any]) -> str:
    value = member.default_factory() if member.default_factory is not MISSING else member.default
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"`{value:_}`"
    return "empty" if value in ("", (), {}) else f"`{value}`"


def error_tree() -> str:
    """Every error of ours, by whose side failed."""
    return "\n".join(_error_tree())


def _error_tree() -> Iterator[str]:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OpenAISSEError)]
    for side, title in SIDES.items():
        yield f"## {title}\n"
        for cls in classes:
            if cls.side == side and cls is not ConfigurationError:
                yield f"`{cls.__name__}`\n: {_status(cls)}; type `{cls.type}`, code `{cls.code}`; {_retry(cls)}.\n"
                yield f"  {_one_line(cls.__doc__ or '')}\n"
                yield f"  *A person reads:* {cls.user_message}\n"


def _status(cls: type[OpenAISSEError]) -> str:
    return "The upstream's status" if issubclass(cls, errors.UpstreamRefused) else f"Status {cls.status}"


def _retry(cls: type[OpenAISSEError]) -> str:
    if issubclass(cls, errors.UpstreamRefused):
        return "SDKs retry as the upstream says"
    if cls.should_retry is not None:
        return f"SDKs {'retry' if cls.should_retry else 'do not retry'} (`x-should-retry`)"
    if cls.retry_after is not None:
        return f"SDKs retry after {cls.retry_after:g} seconds (`Retry-After`)"
    return "SDKs retry" if cls.status in (408, 409, 429) or cls.status >= 500 else "SDKs do not retry"


def record() -> str:
    """Every field of `StreamRecord`, as the log line carries it."""
    return "\n".join(
        f"| `stream_{name}` | `{_escaped(type_)}` | {meaning} |"
        for name, (type_, meaning) in described(StreamRecord).items()
    )


def described(cls: type) -> Mapping[str, tuple[str, str]]:
    """The fields of a class: their types as written, and the docstring literals below them."""
    tree = cast(ast.ClassDef, ast.parse(dedent(inspect.getsource(cls))).body[0])
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for node in tree.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                found[name] = (ast.unparse(annotation), "")
            case ast.Expr(value=ast.Constant(value=str(meaning))) if name:
                found[name] = (found[name][0], _one_line(meaning))
            case _:
                name = ""
    return found


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


GENERATED: Mapping[str, Callable[[], str]] = {"options": options, "errors": error_tree, "record": record}
