"""Types as an app's author sees them: a whole app is clean, and a type checker finds the mistakes that it should."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quart_openai_sse.testing import ScriptedUpstream, read
from tests.conftest import QUESTION, Serve
from tests.machine import need_python_package

HERE = Path(__file__).parent
APP, MISTAKES = HERE / "app.py", HERE / "mistakes.py"

MYPY = {
    "an unknown option": 'Unexpected keyword argument "keepalve" for "QuartOpenAISSE"; did you mean "keepalive"?',
    "an option of the wrong type": (
        'Argument "keepalive" to "QuartOpenAISSE" has incompatible type "str"; expected "float"'
    ),
    "a function that creates a hook": (
        'Argument "auth" to "QuartOpenAISSE" has incompatible type "Callable[[str, Callable[[Any], Any] | None], '
        'Callable[[], Awaitable[Principal | str | int | None]]]"; '
        'expected "Callable[[], Awaitable[Principal | str | int | None]] | None"'
    ),
    "an argument of the wrong type": (
        'Argument 1 to "on_end" of "Registration" has incompatible type '
        '"Callable[[str], Coroutine[Any, Any, None]]"; expected "Callable[[StreamEnd], Coroutine[Any, Any, None]]"'
    ),
    "a transform without yield": (
        'Value of type variable "AsyncIteratorT" of "transform" of "Registration" cannot be '
        '"Coroutine[Any, Any, AsyncIterator[Any]]"'
    ),
    "a format without its end": ('Value of type variable "FormatT" of function cannot be "type[Half]"'),
    "no principal": 'Missing named argument "principal" for "start" of "QuartOpenAISSE"',
}
"""What mypy says of each mistake."""


@pytest.mark.slow
def test_mypy_finds_nothing_in_the_app_and_each_mistake() -> None:
    need_python_package("mypy")
    found = run("mypy", "--strict", "--config-file=", "--follow-imports=silent", "--output=json", *files())
    errors = [each for each in map(json.loads, found.splitlines()) if each["severity"] == "error"]
    assert [(Path(each["file"]).name, mistake(each["line"]), each["message"]) for each in errors] == [
        (MISTAKES.name, name, message) for name, message in MYPY.items()
    ]


@pytest.mark.slow
def test_pyright_finds_nothing_in_the_app_and_each_mistake(tmp_path: Path) -> None:
    need_python_package("basedpyright")
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text('{"typeCheckingMode": "strict"}', "utf-8")
    found = run("basedpyright", "--outputjson", f"--project={settings}", f"--pythonpath={sys.executable}", *files())
    diagnostics: list[dict[str, Any]] = json.loads(found)["generalDiagnostics"]
    assert [(Path(each["file"]).name, mistake(each["range"]["start"]["line"] + 1)) for each in diagnostics] == [
        (MISTAKES.name, name) for name in MYPY
    ]


def run(checker: str, *arguments: str) -> str:
    """What a type checker prints. 0 is success, and 1 are mistakes: anything else is its own failure."""
    done = subprocess.run(
        [sys.executable, "-m", checker, *arguments], capture_output=True, text=True, check=False, cwd=HERE.parents[1]
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def files() -> list[str]:
    return [str(APP), str(MISTAKES)]


def mistake(line: int) -> str:
    """The name of the mistake in this line of mistakes.py, which is the last comment above it."""
    above = MISTAKES.read_text("utf-8").splitlines()[:line]
    return next(each.strip().removeprefix("# ") for each in reversed(above) if each.strip().startswith("# "))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The app, as if in a process of its own."""
    monkeypatch.delitem(sys.modules, "tests.typing.app", raising=False)
    return importlib.import_module("tests.typing.app")


async def test_the_app_runs(module: ModuleType, serve: Serve) -> None:
    body = {"messages": QUESTION}
    with module.ai.override(module.app, upstream=ScriptedUpstream("hello there")):
        client = await serve(module.app, headers={"Authorization": "Bearer s3cret"})
        assert (await read((await client.post("/ask", json=body)).content)).text == "hello there."
        assert (await client.get("/ask")).json() == {"answer": "hello there."}
        assert (await client.post("/words", json=body)).json() == {"words": ["hello", " there", "."]}
        assert (await client.post("/title", json=body)).json() == {"title": "hello there."}
        partner = {"Authorization": "Bearer partner"}
        answer = await client.post("/partners/chat/completions", json={**body, "stream": True}, headers=partner)
        assert (await read(answer.content)).text == "hello there."
        await module.shut_down()
        assert (await client.post("/ask", json=body)).status_code == 503
