"""The pytest plugin: fixtures that work with any asyncio plugin, or none. It imports nothing heavy at start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from quart_openai_sse.config import TEST_DEFAULTS

if TYPE_CHECKING:
    from quart import Quart

    from quart_openai_sse.extension import QuartOpenAISSE
    from quart_openai_sse.testing.simulators import ThreadedSimulator
    from quart_openai_sse.testing.upstream import ScriptedUpstream, Step


# Both hooks set the default of `retries` to 0, so that a request without a script fails at once. The first hook runs
# before a conftest.py can import the app, but not if a conftest.py names this plugin; the second one always runs.


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Sets the default of `retries` to 0."""
    TEST_DEFAULTS["retries"] = 0


def pytest_configure(config: pytest.Config) -> None:
    """Sets the default of `retries` to 0 until the end of the test run."""
    TEST_DEFAULTS["retries"] = 0
    config.add_cleanup(lambda: TEST_DEFAULTS.pop("retries", None))


@pytest.fixture
def openai_sse_upstream() -> Iterator[Callable[..., ScriptedUpstream]]:
    """Gives an app a scripted upstream until the end of the test: `upstream = openai_sse_upstream(ai, app, "Hello.")`.

    The arguments after the extension and the app are those of `quart_openai_sse.testing.ScriptedUpstream`.
    """
    from quart_openai_sse.testing.upstream import ScriptedUpstream

    with ExitStack() as overrides:

        def create(ai: QuartOpenAISSE, app: Quart, *scripts: str | list[Step], **options: Any) -> ScriptedUpstream:
            upstream = ScriptedUpstream(*scripts, **options)
            overrides.enter_context(ai.override(app, upstream=upstream))
            return upstream

        yield create


@pytest.fixture
def openai_simulator() -> Iterator[ThreadedSimulator]:
    """The OpenAI-compatible simulator on a loopback socket, without delays; its address is `base_url`."""
    # In a thread, since an async fixture would need one certain asyncio plugin, and the event loop of one test.
    from quart_openai_sse.testing.simulators import simulator_thread

    with simulator_thread(first_token_delay=0, tokens_per_second=0) as simulator:
        yield simulator
