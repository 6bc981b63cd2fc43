"""The example's page before two workers that share a log, in Chromium: each request goes to the next worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from quart_openai_sse.simulator import answer
from tests.browser import PATIENCE, Chat, NewPage, asked, last_event_ids, log_in
from tests.redis_servers import redis_server
from tests.round_robin import SharedSite, serve_workers

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

QUESTION = "Tell me more."
MODEL = "sim-length-240-rate-40-delay-0"
TEXT = answer(asked(QUESTION, MODEL))


@pytest_asyncio.fixture(loop_scope="session", params=["redis", "sqlite"])
async def site(request: pytest.FixtureRequest, tmp_path: Path, stack: AsyncExitStack) -> AsyncIterator[SharedSite]:
    """Two workers on one log."""
    log = f"sqlite:///{tmp_path}/streams.db"
    if request.param == "redis":
        log = stack.enter_context(redis_server(tmp_path / "redis")).url
    yield await stack.enter_async_context(serve_workers(tmp_path, log, model=MODEL))


async def grows(chat: Chat, characters: int) -> None:
    """Waits until the answer has so many characters."""
    await chat.page.wait_for_function(
        "least => [...document.querySelectorAll('[data-role=assistant] .text')].at(-1)?.textContent.length >= least",
        arg=characters,
        timeout=PATIENCE * 1000,
    )


async def begun(page: Chat, site: SharedSite) -> None:
    """Asks, and waits for the first words."""
    await log_in(page.page, site)  # type: ignore[arg-type]
    await page.ask(QUESTION)
    await grows(page, 40)


def requests(site: SharedSite) -> list[str]:
    """How the upstream's requests ended."""
    return [each.outcome for each in site.simulator.counters.requests if each.model == MODEL]


async def test_reloads_in_the_middle_lose_and_double_nothing(site: SharedSite, new_page: NewPage) -> None:
    chat = Chat(await new_page())
    await begun(chat, site)
    for characters in (100, 200, 300):
        await chat.page.reload()
        await grows(chat, characters)
    assert await chat.ends("completed") == TEXT
    assert site.proxy.readers == {0, 1}
    assert requests(site) == ["finished"]
    await chat.page.reload()
    assert await chat.ends("completed") == TEXT


async def test_a_network_that_drops_in_the_middle_loses_and_doubles_nothing(
    site: SharedSite, new_page: NewPage
) -> None:
    chat = Chat(await new_page(failing=True))
    await begun(chat, site)
    for characters in (100, 200, 300, 400):
        site.proxy.hang_up()
        await grows(chat, characters)
    assert await chat.ends("completed") == TEXT
    assert site.proxy.readers == {0, 1}
    assert requests(site) == ["finished"]
    resumed = [int(each) for each in last_event_ids([head for _, head in site.proxy.reads]) if each]
    assert len(resumed) >= 4
    assert resumed == sorted(resumed)


async def test_a_second_tab_follows_the_same_answer(site: SharedSite, new_page: NewPage) -> None:
    first = Chat(await new_page())
    await begun(first, site)
    second = Chat(await first.page.context.new_page())
    await second.page.goto(first.page.url)
    await grows(second, 100)
    assert site.proxy.readers == {0, 1}
    assert await first.ends("completed") == TEXT
    assert await second.ends("completed") == TEXT
    assert requests(site) == ["finished"]


@pytest.mark.parametrize("stopping", [0, 1], ids=["the one that asked", "the other"])
async def test_stop_in_either_tab_stops_both(site: SharedSite, new_page: NewPage, stopping: int) -> None:
    first = Chat(await new_page())
    await begun(first, site)
    second = Chat(await first.page.context.new_page())
    await second.page.goto(first.page.url)
    await grows(second, 60)
    await (first, second)[stopping].stop.click()
    texts = [await tab.ends("stopped") for tab in (first, second)]
    assert texts[0] == texts[1]
    assert TEXT.startswith(texts[0])
    assert texts[0] != TEXT
    await site.simulator.counters.until(lambda: requests(site) == ["closed_by_peer"])
