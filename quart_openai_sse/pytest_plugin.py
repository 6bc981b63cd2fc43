"""The pytest plugin: fixtures for any asyncio plugin or none, which import what they need when they are used."""

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


# A request for which a test has no script fails at once, unless the app sets `retries`. The first hook comes before a
# conftest.py can import the app, and not at all if a conftest.py names this plugin; the second one always comes.


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Sets the default of `retries`."""
    TEST_DEFAULTS["retries"] = 0


def pytest_configure(config: pytest.Config) -> None:
    """Sets the default of `retries` until the run is over."""
    TEST_DEFAULTS["retries"] = 0
    config.add_cleanup(lambda: TEST_DEFAULTS.pop("retries", None))


@pytest.fixture
def openai_sse_upstream() -> Iterator[Callable[..., ScriptedUpstream]]:
    """Gives an app a scripted upstream until the test is over: `upstream = openai_sse_upstream(ai, app, "Hello.")`.

    After the extension and the app come the scripts, and the options of `quart_openai_sse.testing.ScriptedUpstream`.
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
    """The OpenAI-compatible simulator on a loopback socket, as fast as it can; its address is `base_url`."""
    # In a thread: an async fixture would belong to one asyncio plugin, and to the loop and the scope of one test.
    from quart_openai_sse.testing.simulators import simulator_thread

    with simulator_thread(first_token_delay=0, tokens_per_second=0) as simulator:
        yield simulator
