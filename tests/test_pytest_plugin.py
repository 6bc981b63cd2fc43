"""The pytest plugin in other projects: found by its entry point, with each asyncio plugin, and without any."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quart_openai_sse.testing import ScriptedUpstream
from tests.cli.test_cli import ROOT, surroundings, write_entry_points
from tests.conftest import CreateApp
from tests.test_docs import blocks

PLUGIN = "quart_openai_sse.pytest_plugin"
Pytest = Callable[..., str]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    """Runs pytest on the files of a project in which the package is installed. Returns the output of a passing run."""
    write_entry_points(tmp_path / "installed")
    project = tmp_path / "project"
    project.mkdir()

    def run(*options: str, **files: str) -> str:
        for name, code in files.items():
            (project / f"{name}.py").write_text(code, "utf-8")
        project.joinpath("pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-ra", *NOT_NEEDED, *options],
            cwd=project,
            env=surroundings({"PYTHONPATH": str(tmp_path / "installed")}),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


def asyncio_mode(mode: str) -> tuple[str, ...]:
    return ("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function")


WITHOUT_ASYNCIO = ("-p", "no:asyncio")
NOT_NEEDED = [
    part for name in ("hypothesispytest", "schemathesis", "timeout", "xdist") for part in ("-p", f"no:{name}")
]
"""Plugins that take a second to import."""

SYNC = """
import httpx
import sys


def test_nothing_is_imported_before_it_is_used():
    assert "quart_openai_sse.pytest_plugin" in sys.modules
    assert not {"quart_openai_sse.testing", "quart_openai_sse.simulator"} & sys.modules.keys()


def test_the_simulator(openai_simulator):
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{openai_simulator.base_url}/chat/completions", json=body, trust_env=False).json()
    assert 'You asked: "Hello"' in answer["choices"][0]["message"]["content"]
    assert openai_simulator.counters.totals["finished"] == 1
"""

ANYIO = """
import httpx
import pytest


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_simulator(openai_simulator, anyio_backend):
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hello"}]}
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.post(f"{openai_simulator.base_url}/chat/completions", json=body)
    assert (await openai_simulator.ended(1)).outcome == "finished"
"""

# A project that does not use the fixtures. Its app is imported by its conftest.py.
OWN_APP = """
from quart import Quart
from quart_openai_sse import QuartOpenAISSE, allow_anonymous


def retries(config=None, **options):
    app = Quart(__name__)
    app.config.update(config or {})
    ai = QuartOpenAISSE(app, auth=allow_anonymous(), base_url="http://127.0.0.1:9/v1", **options)
    return ai.config(app).retries


FOUND = [retries(), retries(retries=2), retries({"OPENAI_SSE_RETRIES": "1"})]
"""
OWN_CONFTEST = "import own_app"
OWN_TEST = """
import own_app


def test_a_request_without_a_script_is_not_repeated_unless_the_app_says_so():
    assert own_app.FOUND == [EXPECTED, 2, 1]
    assert own_app.retries() == EXPECTED
"""

# One run for each kind of project, since each run starts a new Python process.


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of this copy")
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_example_of_the_documentation_runs_in_both_modes_of_pytest_asyncio(mode: str, run_pytest: Pytest) -> None:
    page = blocks(ROOT / "docs/how-to/test-your-app.md")
    files = {
        block.how.split()[-1].removesuffix(".py"): block.code for block in page if block.how.startswith("run: script")
    }
    assert {"shop", "conftest", "test_shop"} == files.keys()
    files |= {"own_app": OWN_APP, "test_own": OWN_TEST.replace("EXPECTED", "0")}
    files["conftest"] += OWN_CONFTEST
    assert "9 passed" in run_pytest(*asyncio_mode(mode), **files)


def test_a_project_without_an_asyncio_plugin_can_use_the_simulator(run_pytest: Pytest) -> None:
    assert "2 passed" in run_pytest(*WITHOUT_ASYNCIO, "-p", "no:anyio", test_sync=SYNC)


def test_the_simulator_serves_tests_of_anyio_and_the_plugin_may_be_named_again(run_pytest: Pytest) -> None:
    conftest = f"pytest_plugins = [{PLUGIN!r}]\n"
    assert "1 passed" in run_pytest("-p", PLUGIN, *WITHOUT_ASYNCIO, conftest=conftest, test_anyio=ANYIO)


def test_the_plugin_can_be_left_out(run_pytest: Pytest) -> None:
    own = f"import sys\n\n\ndef test_own():\n    assert {PLUGIN!r} not in sys.modules\n"
    files = {"test_own": own, "own_app": OWN_APP, "test_retries": OWN_TEST.replace("EXPECTED", "3")}
    assert "2 passed" in run_pytest("-p", f"no:{PLUGIN}", *WITHOUT_ASYNCIO, **files)


def test_the_fixtures_are_documented(run_pytest: Pytest) -> None:
    listed = run_pytest("--fixtures", *WITHOUT_ASYNCIO, test_own="")
    assert re.search(r"^openai_sse_upstream -- .*\n    Gives an app a scripted upstream until", listed, re.M)
    assert re.search(r"^openai_simulator -- .*\n    The OpenAI-compatible simulator", listed, re.M)


# In this process the plugin is not loaded (pyproject.toml), so the tests call its fixtures directly.


async def test_an_override_is_over_with_its_test(create_app: CreateApp) -> None:
    from quart_openai_sse import pytest_plugin

    app, ai = create_app(ScriptedUpstream("its own"))
    fixture = pytest_plugin.openai_sse_upstream.__wrapped__()  # type: ignore[attr-defined]
    override = next(fixture)
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    async with app.test_app() as running:
        client = running.test_client()

        async def said() -> str:
            response = await client.post(
                "/v1/chat/completions", json=body, headers={"Authorization": "Bearer token-ann"}
            )
            return str((await response.get_json())["choices"][0]["message"]["content"])

        first = override(ai, app, "the first")
        assert await said() == "the first"
        override(ai, app, "the second")
        assert await said() == "the second"
        assert next(fixture, "over") == "over"
        assert await said() == "its own"
    assert len(first.requests) == 1
