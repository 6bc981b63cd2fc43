"""The example's chat page in Chromium: what a person sees and can do, whatever a model, the network or a tab does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Route, expect

from example_app.handbook import search
from quart_openai_sse.simulator import answer
from quart_openai_sse.testing import Gate, ScriptedUpstream, chunk, finish
from tests.browser import (
    LONG,
    MARKDOWN,
    PATIENCE,
    Chat,
    Gated,
    NewPage,
    NewSite,
    Site,
    asked,
    last_event_ids,
    log_in,
    log_in_by_form,
    text_of,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


# An answer -----------------------------------------------------------------------------------------------------------


async def test_an_answer_grows_before_ones_eyes_and_is_the_models_to_the_letter(
    new_site: NewSite, new_page: NewPage
) -> None:
    model = "sim-length-90-rate-90"
    site, page = await new_site(model), await new_page()
    # Without Markdown: what is shown then has the letters of what was written.
    questions = (f"How far is the moon, {number}?" for number in range(100))
    question = next(each for each in questions if not set("*`|>1") & set(answer(asked(each, model))))
    await log_in_by_form(page, site)
    chat = Chat(page)
    await expect(page.get_by_text("What would you like to know?")).to_be_visible()
    await page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const message = document.querySelector("[data-role=assistant]");
                if (message?.dataset.state === "streaming") seen.push(message.querySelector(".text").textContent);
            };
            const everything = { subtree: true, childList: true, characterData: true, attributes: true };
            new MutationObserver(look).observe(document.getElementById("messages"), everything);
        }"""
    )
    await chat.ask(question)
    text = await chat.ends("completed")
    assert text == answer(asked(question, model))

    seen = [letters(each) for each in await page.evaluate("window.seen")]
    lengths = [len(each) for each in seen if each]
    assert lengths == sorted(lengths)
    assert len({length for length in lengths if length < len(letters(text))}) >= 10
    assert all(letters(text).startswith(each) for each in seen)
    assert await text_of(chat.questions) == question
    await expect(page.get_by_text("What would you like to know?")).to_be_hidden()
    await expect(chat.note).to_be_hidden()
    await expect(chat.status).to_be_empty()


def letters(text: str) -> str:
    """*text* without its spaces and line ends."""
    return "".join(text.split())


async def test_a_reload_in_the_middle_loses_and_doubles_nothing(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    for _ in range(2):
        await page.reload()
        await chat.shows(upstream.so_far[0])
        await expect(chat.answer).to_have_attribute("data-state", "streaming")
    upstream.gates[0].set()
    assert await chat.ends("completed") == LONG

    await page.reload()
    assert await chat.ends("completed") == LONG
    await expect(chat.answers).to_have_count(1)
    await expect(chat.questions).to_have_count(1)
    assert len(upstream.requests) == 1


async def test_a_dropped_connection_is_resumed_twice_and_said(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 2)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    for so_far, gate, said in zip(upstream.so_far, upstream.gates, ("Resumed.", "Resumed 2 times."), strict=False):
        await chat.shows(so_far)
        await chat.drop.click()
        await expect(chat.status).to_have_text(said)
        await chat.shows(so_far)
        gate.set()
    assert await chat.ends("completed") == LONG
    await expect(chat.status).to_have_text("Resumed 2 times.")
    await expect(chat.drop).to_be_hidden()
    first, *resumed = last_event_ids(site.proxy.reads)
    assert first == ""
    assert len(resumed) == 2
    assert 0 < int(resumed[0]) < int(resumed[1])
    assert len(upstream.requests) == 1


async def test_a_network_that_fails_in_the_middle_is_survived(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site("sim-length-300-rate-300"), await new_page(failing=True)
    await log_in(page, site)
    chat = Chat(page)
    site.proxy.cuts = [0, 1500, 700, 3, 2000, 2001, 901]
    await chat.ask("Tell me more.")
    assert await chat.ends("completed") == answer(asked("Tell me more.", "sim-length-300-rate-300"))
    assert site.proxy.cuts == []
    await expect(chat.answers).to_have_count(1)


async def test_without_a_network_the_page_waits_for_it(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    await page.context.set_offline(True)
    site.proxy.hang_up()
    await expect(chat.status).to_have_text("Connection lost, resuming…")
    upstream.gates[0].set()
    await page.context.set_offline(False)
    assert await chat.ends("completed") == LONG
    await expect(chat.status).to_have_text("Resumed.")


async def test_stop_stops_the_answer_and_what_writes_it(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site("sim-long", tokens_per_second=40), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await expect(chat.answer.locator(".text")).to_contain_text("You asked")
    await chat.stop.click()
    text = await chat.ends("stopped")
    assert text
    assert answer(asked("Tell me more.", "sim-long")).startswith(text)
    await expect(chat.note).to_have_text("Stopped.")
    await expect(chat.stop).to_be_hidden()
    await expect(chat.composer).to_be_focused()
    async with asyncio.timeout(PATIENCE):
        assert (await site.simulator.ended()).outcome == "closed_by_peer"

    await page.reload()
    assert await chat.ends("stopped") == text
    await expect(chat.note).to_have_text("Stopped.")


@pytest.mark.parametrize("from_the_composer", [True, False], ids=["in the composer", "anywhere else"])
async def test_escape_stops_the_answer(new_site: NewSite, new_page: NewPage, from_the_composer: bool) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    await (chat.composer if from_the_composer else chat.title).focus()
    await page.keyboard.press("Escape")
    assert await chat.ends("stopped") == upstream.so_far[0]


async def test_escape_in_a_dialog_or_the_drawer_closes_only_that(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(viewport={"width": 390, "height": 780})
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    for opener, opened in (("Conversations", page.locator("#sidebar")), ("Rename", page.get_by_role("dialog"))):
        await page.get_by_role("button", name=opener).click()
        await expect(opened).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(opened).to_be_hidden()
    upstream.gates[0].set()
    assert await chat.ends("completed") == LONG


async def test_an_upstream_that_fails_is_a_sentence_and_the_question_can_be_asked_again(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site("sim-error-500"), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    assert await chat.ends("failed") == ""
    await expect(chat.note).to_have_text("The AI service had a problem. Please try again.")
    await chat.answer.get_by_role("button", name="Try again").click()
    await expect(chat.composer).to_have_value("Tell me more.")
    await expect(chat.composer).to_be_focused()

    await page.reload()
    assert await chat.ends("failed") == ""
    await expect(chat.note).to_have_text("The AI service had a problem. Please try again.")
    shown = await page.locator("#messages").inner_text()
    assert [word for word in ("Traceback", "Error", "500", "undefined", "[object") if word in shown] == []


async def test_a_question_that_is_refused_or_never_arrives_is_a_sentence(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(OPENAI_SSE_MODELS=["another"]), await new_page(failing=True)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    assert await chat.ends("failed") == ""
    await expect(chat.note).to_have_text("This model is not available.")

    await page.context.set_offline(True)
    await chat.ask("Are you there?")
    await expect(chat.answers).to_have_count(2)
    assert await chat.ends("failed") == ""
    await expect(chat.note).to_have_text("The server could not be reached. Please try again.")
    await chat.answer.get_by_role("button", name="Try again").click()
    await expect(chat.composer).to_have_value("Are you there?")


async def test_who_was_logged_out_meanwhile_is_sent_to_the_login(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    await log_in(page, site)
    chat = Chat(page)
    await expect(chat.send).to_be_enabled()
    await page.context.clear_cookies()
    await chat.ask("Tell me more.")
    assert await chat.ends("failed") == ""
    await expect(chat.note).to_have_text("Please log in.")
    await chat.answer.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{site.url}/login")


async def test_the_handbooks_answer_shows_its_sources(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await expect(chat.send).to_be_enabled()
    await page.get_by_label("Model").select_option("handbook")
    question = "When is the roastery open, and what does delivery cost?"
    await chat.ask(question)
    text = await chat.ends("completed")
    found = search(question)
    said = "\n".join(f"{title}: {passage}" for title, passage in found.items())
    assert text == answer({"model": "sim-fast", "messages": [*asked(question)["messages"], tool_said(said)]})

    for _ in range(2):
        sources = chat.answer.get_by_label("Sources")
        await expect(sources.locator("summary")).to_have_text(list(found))
        await sources.get_by_text("Opening hours").click()
        await expect(sources.get_by_text(found["Opening hours"])).to_be_visible()
        await expect(page.get_by_text("Looking into the handbook…")).to_be_hidden()
        await page.reload()
        await chat.ends("completed")
        await expect(page.get_by_label("Model")).to_have_value("handbook")


def tool_said(text: str) -> dict[str, Any]:
    """A tool's message."""
    return {"role": "tool", "tool_call_id": "call", "content": text}


async def test_what_a_model_thought_is_there_once_it_has_answered(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site("sim-reasoning-length-20"), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("How far is the moon?")
    assert await chat.ends("completed") == answer(asked("How far is the moon?", "sim-reasoning-length-20"))
    for _ in range(2):
        await chat.answer.get_by_text("Reasoning").click()
        await expect(chat.answer.get_by_text("First think, then answer")).to_be_visible()
        await page.reload()


async def test_reasoning_is_shown_as_it_comes(new_site: NewSite, new_page: NewPage) -> None:
    site, page, gate = await new_site(), await new_page(), Gate()
    thinking = ScriptedUpstream([chunk(reasoning="Hm, "), chunk(reasoning="the moon."), gate, chunk("Far."), finish()])
    site.overrides.enter_context(site.app.extensions["ai"].override(site.app, upstream=thinking))
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("How far is the moon?")
    await chat.answer.get_by_text("Reasoning").click()
    await expect(chat.answer.locator(".thought")).to_have_text("Hm, the moon.")
    gate.open()
    assert await chat.ends("completed") == "Far."
    await expect(chat.answer.locator(".thought")).to_have_text("Hm, the moon.")


async def test_an_answer_that_was_cut_off_says_so(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    cut = ScriptedUpstream([chunk("Half a"), finish("length")])
    site.overrides.enter_context(site.app.extensions["ai"].override(site.app, upstream=cut))
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    assert await chat.ends("completed") == "Half a"
    await expect(chat.note).to_have_text("The answer was cut off at the length limit.")


async def test_an_answer_that_was_forgotten_meanwhile_is_shown_as_it_was_stored(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(OPENAI_SSE_RETENTION=0), await new_page(failing=True)
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    await page.context.set_offline(True)
    site.proxy.hang_up()
    await expect(chat.status).to_have_text("Connection lost, resuming…")
    upstream.gates[0].set()
    await asyncio.wait_for(no_stream_runs(site), PATIENCE)
    await page.context.set_offline(False)
    assert await chat.ends("completed") == LONG
    await expect(chat.answers).to_have_count(1)


async def no_stream_runs(site: Site) -> None:
    """Returns when the last answer has been stored."""
    async with site.app.app_context():
        while site.app.extensions["quart_openai_sse"]["openai_sse"].engines.current().streams:
            await asyncio.sleep(0.01)


# Tabs and devices ----------------------------------------------------------------------------------------------------


async def open_tab(chat: Chat, path: str = "") -> Chat:
    """Another tab of the same browser, at the same conversation."""
    tab = Chat(await chat.page.context.new_page())
    await tab.page.goto(path or chat.page.url)
    await expect(tab.title).to_be_visible()
    return tab


async def test_a_second_tab_follows_the_same_answer(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 2)
    await log_in(page, site)
    first = Chat(page)
    await first.ask("Tell me more.")
    await first.shows(upstream.so_far[0])
    second = await open_tab(first)
    await second.shows(upstream.so_far[0])
    upstream.gates[0].set()
    for tab in (first, second):
        await tab.shows(upstream.so_far[1])
    await first.page.close()
    upstream.gates[1].set()
    assert await second.ends("completed") == LONG
    assert len(upstream.requests) == 1


async def test_a_question_and_its_answer_appear_in_the_other_tab_without_a_reload(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    site.says("Yes.")
    await log_in(page, site)
    first = Chat(page)
    await first.ask("One?")
    assert await first.ends("completed") == "Yes."
    second = await open_tab(first)
    assert await second.ends("completed") == "Yes."

    upstream = site.gated(LONG, 1)
    await first.ask("Two?")
    await second.shows(upstream.so_far[0])
    await expect(second.asked).to_have_text(["One?", "Two?"])
    await expect(second.stop).to_be_visible()
    upstream.gates[0].set()
    for tab in (first, second):
        assert await tab.ends("completed") == LONG
        await expect(tab.answers).to_have_count(2)

    site.says("And back.")
    await second.ask("Three?")
    for tab in (second, first):
        await expect(tab.asked).to_have_text(["One?", "Two?", "Three?"])
        await expect(tab.answers).to_have_count(3)
        assert await tab.ends("completed") == "And back."


@pytest.mark.parametrize("stopping", [0, 1], ids=["the one that asked", "the other"])
async def test_stop_in_either_tab_stops_both(new_site: NewSite, new_page: NewPage, stopping: int) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    first = Chat(page)
    await first.ask("Tell me more.")
    await first.shows(upstream.so_far[0])
    second = await open_tab(first)
    await second.shows(upstream.so_far[0])
    await (first, second)[stopping].stop.click()
    for tab in (first, second):
        assert await tab.ends("stopped") == upstream.so_far[0]


async def test_two_tabs_that_ask_at_once_are_told_and_both_see_the_answer(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    site.says("Yes.")
    await log_in(page, site)
    first = Chat(page)
    await first.ask("One?")
    await first.ends("completed")
    second = await open_tab(first)
    await second.ends("completed")
    upstream = site.gated(LONG, 1)
    await page.evaluate("window.BroadcastChannel.prototype.postMessage = () => {}")  # the news is late
    await first.ask("Two?")
    await first.shows(upstream.so_far[0])
    await second.ask("Two too?")
    refused = "The answer before is still being written. Stop it, or wait for its end."
    await expect(second.page.get_by_text(refused)).to_be_visible()
    await second.shows(upstream.so_far[0])
    upstream.gates[0].set()
    assert await second.ends("completed") == LONG
    assert len(upstream.requests) == 1


async def test_what_another_device_asked_is_there_when_one_comes_back(new_site: NewSite, new_page: NewPage) -> None:
    site, page, phone = await new_site(), await new_page(), await new_page(viewport={"width": 390, "height": 780})
    site.says("Yes.")
    await log_in(page, site)
    here = Chat(page)
    await here.ask("One?")
    await here.ends("completed")
    await log_in(phone, site, page.url.removeprefix(site.url))
    there = Chat(phone)
    await there.ends("completed")

    upstream = site.gated(LONG, 1)
    await there.ask("Two?")
    await there.shows(upstream.so_far[0])
    await expect(here.questions).to_have_count(1)
    await page.evaluate("dispatchEvent(new Event('focus'))")
    await here.shows(upstream.so_far[0])
    await expect(here.asked).to_have_text(["One?", "Two?"])
    upstream.gates[0].set()
    for each in (there, here):
        await expect(each.answers).to_have_count(2)
        assert await each.ends("completed") == LONG


async def test_logging_out_in_the_middle_ends_it_in_every_tab_and_the_answer_is_kept(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page(failing=True)
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    first = Chat(page)
    await first.ask("Tell me more.")
    await first.shows(upstream.so_far[0])
    address = page.url
    second = await open_tab(first)
    await second.shows(upstream.so_far[0])
    await page.get_by_role("button", name="Log out").click()
    for tab in (first, second):
        await tab.page.wait_for_url(f"{site.url}/login")
    await page.go_back()
    await page.wait_for_url(f"{site.url}/login")
    upstream.gates[0].set()
    await asyncio.wait_for(no_stream_runs(site), PATIENCE)
    await log_in(page, site, address.removeprefix(site.url))
    assert await first.ends("completed") == LONG


# Conversations -------------------------------------------------------------------------------------------------------


async def test_a_conversation_has_an_address_for_reload_and_back(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says("Yes.")
    await log_in(page, site)
    chat = Chat(page)
    for question in ("One?", "Two?"):
        await chat.ask(question)
        assert await chat.ends("completed") == "Yes."
        await expect(chat.title).to_have_text(question)
        assert await page.title() == f"{question} · quart-openai-sse"
        await chat.new_chat.click()
        await expect(chat.title).to_have_text("New chat")
        assert page.url == f"{site.url}/"
        await expect(chat.answers).to_have_count(0)
    await expect(chat.listed).to_have_text(["Two?", "One?"])

    await chat.listed.get_by_text("One?").click()
    await expect(chat.asked).to_have_text(["One?"])
    one = page.url
    await expect(page.get_by_role("link", name="One?")).to_have_attribute("aria-current", "page")
    await chat.listed.get_by_text("Two?").click()
    await expect(chat.asked).to_have_text(["Two?"])
    await page.go_back()
    assert page.url == one
    await expect(chat.asked).to_have_text(["One?"])
    await page.reload()
    await expect(chat.asked).to_have_text(["One?"])
    await expect(chat.title).to_have_text("One?")
    await page.go_forward()
    await expect(chat.asked).to_have_text(["Two?"])


async def asked_and_left(page: Page, site: Site) -> tuple[Chat, Gated]:
    """A chat in which "One?" is being answered, and the page is at a new conversation."""
    one = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("One?")
    await chat.shows(one.so_far[0])
    await chat.new_chat.click()
    return chat, one


async def test_two_conversations_are_answered_at_once_and_the_list_marks_them(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    chat, one = await asked_and_left(page, site)
    async with asyncio.timeout(PATIENCE):  # the page reads it no longer; it goes on all the same
        await site.proxy.left.wait()
    await expect(chat.composer).to_be_focused()
    await expect(chat.answers).to_have_count(0)
    two = site.gated("Another answer, which also takes its time and some words.", 1)
    await chat.ask("Two?")
    await chat.shows(two.so_far[0])
    await expect(chat.listed).to_have_text(["Two?, answering", "One?, answering"])

    await chat.listed.get_by_text("One?").click()
    await chat.shows(one.so_far[0])
    two.gates[0].set()
    await expect(chat.listed).to_have_text(["Two?", "One?, answering"])
    one.gates[0].set()
    assert await chat.ends("completed") == LONG
    await expect(chat.listed).to_have_text(["One?", "Two?"])
    await chat.listed.get_by_text("Two?").click()
    assert await chat.ends("completed") == two.text
    assert [upstream.requests[0]["messages"] for upstream in (one, two)] == [
        [{"role": "user", "content": "One?"}],
        [{"role": "user", "content": "Two?"}],
    ]


async def test_a_click_in_the_list_is_not_lost_while_the_list_is_refreshed(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    chat, one = await asked_and_left(page, site)
    entry = chat.listed.get_by_text("One?")
    await entry.hover()
    await page.mouse.down()
    for _ in range(2):  # as long as it is answered
        await page.wait_for_event("requestfinished", lambda request: request.url.endswith("/conversations"))
    await page.mouse.up()
    await chat.shows(one.so_far[0])
    one.gates[0].set()
    assert await chat.ends("completed") == LONG


async def test_the_list_says_when_an_answer_is_complete_that_nobody_follows(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    chat, one = await asked_and_left(page, site)
    await expect(chat.listed).to_have_text(["One?, answering"])
    one.gates[0].set()
    await expect(chat.listed).to_have_text(["One?"])


async def test_who_leaves_while_the_question_is_on_its_way_finds_it_in_the_list(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page(failing=True)
    site.says("Yes.")
    await log_in(page, site)
    chat = Chat(page)
    for fails in (False, True):
        held = asyncio.Event()

        async def hold(route: Route, held: asyncio.Event = held, fails: bool = fails) -> None:
            await held.wait()
            await (route.abort() if fails else route.continue_())

        await page.route("**/conversations", lambda route: hold(route) if is_post(route) else route.continue_())
        await chat.ask("One?")
        await expect(chat.asked).to_have_text(["One?"])
        await chat.new_chat.click()
        held.set()
        await expect(chat.listed).to_have_text(["One?"])
        await expect(chat.answers).to_have_count(0)
        assert page.url == f"{site.url}/"
        await page.unroute("**/conversations")
    await expect(chat.status).to_have_text("The server could not be reached. Please try again.")
    await chat.listed.get_by_text("One?").click()
    assert await chat.ends("completed") == "Yes."


def is_post(route: Route) -> bool:
    return route.request.method == "POST"


async def test_a_conversation_is_renamed_here_and_in_the_other_tab(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says("Yes.")
    await log_in(page, site)
    first = Chat(page)
    await first.ask("One?")
    await first.ends("completed")
    second = await open_tab(first)
    rename = page.get_by_role("button", name="Rename")
    dialog = page.get_by_role("dialog", name="Rename the conversation")

    await rename.click()
    await expect(dialog.get_by_label("Title")).to_be_focused()
    await dialog.get_by_label("Title").fill("Not this")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await rename.click()
    await expect(dialog.get_by_label("Title")).to_have_value("One?")
    await dialog.get_by_label("Title").fill("  <b>Another</b>   title ")
    await page.keyboard.press("Enter")
    for tab in (first, second):
        await expect(tab.title).to_have_text("<b>Another</b> title")
        await expect(tab.listed).to_have_text(["<b>Another</b> title"])
    await page.reload()
    await expect(first.title).to_have_text("<b>Another</b> title")


async def test_a_conversation_is_deleted_with_its_running_answer_here_and_in_the_other_tab(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site("sim-long", tokens_per_second=40), await new_page(failing=True)
    await log_in(page, site)
    first = Chat(page)
    await first.ask("Tell me more.")
    await expect(first.answer.locator(".text")).to_contain_text("You asked")
    address = page.url
    second = await open_tab(first)
    await expect(second.answer.locator(".text")).to_contain_text("You asked")
    for button in ("Keep it", "Delete it"):
        await expect(first.listed).to_have_count(1)
        await page.get_by_role("button", name="Delete", exact=True).click()
        dialog = page.get_by_role("dialog", name="Delete the conversation?")
        await expect(dialog).to_contain_text("Tell me more.")
        await dialog.get_by_role("button", name=button).click()
    async with asyncio.timeout(PATIENCE):
        assert (await site.simulator.ended()).outcome == "closed_by_peer"
    for tab in (first, second):
        await expect(tab.status).to_have_text("That conversation was deleted.")
        await expect(tab.answers).to_have_count(0)
        await expect(tab.listed).to_have_count(0)
        assert tab.page.url == f"{site.url}/"
        await expect(tab.send).to_be_enabled()
    response = await page.goto(address)
    assert response is not None
    assert response.status == 404


async def test_a_strangers_conversation_is_not_found(new_site: NewSite, new_page: NewPage) -> None:
    site, page, stranger = await new_site(), await new_page(), await new_page(failing=True)
    site.says("A secret.")
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("A secret?")
    await chat.ends("completed")
    await log_in(stranger, site, name="grace")
    await expect(Chat(stranger).listed).to_have_count(0)
    response = await stranger.goto(page.url)
    assert response is not None
    assert response.status == 404
    await expect(stranger.get_by_role("main")).to_contain_text("This conversation does not exist, or it was deleted.")
    await stranger.get_by_role("link", name="Start a new chat").click()
    await stranger.wait_for_url(f"{site.url}/")


async def test_an_idea_is_asked_by_one_click(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await page.get_by_role("button", name="When is the roastery open").click()
    assert "That settles it." in await chat.ends("completed")
    await expect(page.get_by_label("Model")).to_have_value("handbook")
    await expect(chat.answer.get_by_label("Sources")).to_be_visible()


# Keyboard, screen reader, small screens ------------------------------------------------------------------------------


async def test_enter_sends_and_shift_enter_does_not(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.gated("Yes.", 0)
    await log_in(page, site)
    chat = Chat(page)
    await expect(chat.send).to_be_enabled()
    await chat.composer.press("Enter")
    await chat.composer.type("Two")
    await chat.composer.press("Shift+Enter")
    await chat.composer.type("lines")
    await expect(chat.questions).to_have_count(0)
    await chat.composer.press("Enter")
    assert await chat.ends("completed") == "Yes."
    assert await text_of(chat.questions) == "Two\nlines"
    await expect(chat.composer).to_have_value("")


async def test_the_enter_of_an_input_method_does_not_send(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says("はい。")
    await log_in(page, site)
    chat = Chat(page)
    await chat.composer.fill("川は")
    for event in ("{ isComposing: true }", "{ keyCode: 229 }"):
        key = f'new KeyboardEvent("keydown", {{ key: "Enter", bubbles: true, cancelable: true, ...{event} }})'
        assert await chat.composer.evaluate(f"element => element.dispatchEvent({key})")  # nobody prevented it
    await expect(chat.questions).to_have_count(0)
    await chat.composer.press("Enter")
    assert await chat.ends("completed") == "はい。"


async def test_a_screen_reader_hears_the_beginning_and_the_end_and_not_each_letter(
    new_site: NewSite, new_page: NewPage
) -> None:
    site, page = await new_site(), await new_page()
    upstream = site.gated(LONG, 1)
    await log_in(page, site)
    chat = Chat(page)
    await page.evaluate(
        """() => {
            window.heard = [];
            const announcer = document.getElementById("announcer");
            const hear = () => announcer.textContent && heard.push(announcer.textContent);
            new MutationObserver(hear).observe(announcer, { childList: true });
        }"""
    )
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    await expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")
    await expect(chat.answer).to_have_attribute("aria-busy", "true")
    live = await page.locator("[aria-live]:not([aria-live=off]), [role=status], [role=alert]").evaluate_all(
        "elements => elements.map((element) => element.id)"
    )
    assert sorted(live) == ["announcer", "status"]
    upstream.gates[0].set()
    await expect(chat.answer).to_have_attribute("data-state", "completed")
    assert await chat.answer.get_attribute("aria-busy") is None
    # A function: the page's policy forbids the eval by which Playwright looks at an expression a second time.
    await page.wait_for_function("() => heard.length === 2")
    assert await page.evaluate("heard") == ["The assistant is answering.", "The answer is complete."]
    await expect(chat.composer).to_be_focused()


async def unnamed(page: Page) -> list[str]:
    """What can be pressed or filled in and has no name, landmarks that share one, ids that do."""
    found: list[str] = await page.evaluate(
        """() => {
            const all = (selector) => [...document.querySelectorAll(selector)];
            const name = (each) => each.ariaLabel || each.textContent.trim() || each.labels?.[0]?.textContent.trim();
            const ids = all("[id]").map(({ id }) => id);
            const referring = ["aria-controls", "aria-labelledby", "aria-describedby", "for"];
            const references = referring.flatMap((by) => all(`[${by}]`).map((each) => each.getAttribute(by)));
            return [
                ...all("button, a[href], input, select, textarea, summary").filter((each) => !name(each)),
                ...ids.filter((id, number) => ids.indexOf(id) !== number),
                ...references.filter((id) => !document.getElementById(id)),
            ].map((each) => each.outerHTML ?? each);
        }"""
    )
    return found


async def test_every_page_has_its_landmarks_headings_and_names(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(failing=True)
    site.says(MARKDOWN)
    await page.goto(f"{site.url}/login")
    await expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("Log in")
    assert await unnamed(page) == []

    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Show me.")
    await chat.ends("completed")
    for role, name in (("banner", None), ("navigation", "Conversations"), ("main", None), ("log", "Conversation")):
        await expect(page.get_by_role(role, name=name) if name else page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    assert await page.get_by_role("main").get_by_role("heading").all_inner_texts() == [
        "Show me.",
        "You",
        "Assistant",
        "Streams",
    ]
    assert await unnamed(page) == []
    await page.goto(f"{site.url}/c/unknown")
    await expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("Not found")


async def test_the_first_stop_of_the_keyboard_leads_to_the_message_box(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await expect(chat.composer).to_be_focused()
    skip = page.get_by_role("link", name="Skip to the message box")
    await skip.focus()
    assert await page.evaluate("document.querySelector('a, button, input, textarea, select').className") == "skip"
    await expect(skip).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(chat.composer).to_be_focused()


async def at_end(scroller: Locator) -> bool:
    """Whether the reader sees the end."""
    seen: bool = await scroller.evaluate("each => each.scrollHeight - each.scrollTop - each.clientHeight < 2")
    return seen


async def test_the_page_scrolls_along_only_for_a_reader_who_is_at_the_end(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page(viewport={"width": 800, "height": 500})
    upstream = site.gated("\n\n".join(f"Paragraph {number}." for number in range(120)), 3)
    await log_in(page, site)
    chat = Chat(page)
    scroller, jump = page.get_by_role("group", name="Messages"), page.get_by_role("button", name="Jump to the latest")
    await chat.ask("Tell me more.")
    await chat.shows(upstream.so_far[0])
    assert await at_end(scroller)
    await expect(jump).to_be_hidden()

    await scroller.evaluate("each => each.scrollTo(0, 100)")
    await expect(jump).to_be_visible()
    upstream.gates[0].set()
    await chat.shows(upstream.so_far[1])
    assert await scroller.evaluate("each => each.scrollTop") == 100

    await jump.click()
    await expect(jump).to_be_hidden()
    assert await at_end(scroller)
    await expect(chat.composer).to_be_focused()
    upstream.gates[1].set()
    await chat.shows(upstream.so_far[2])
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await at_end(scroller)
    upstream.gates[2].set()
    await chat.ends("completed")
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await at_end(scroller)


async def test_on_a_phone_the_list_is_a_drawer(new_site: NewSite, new_page: NewPage) -> None:
    site = await new_site()
    page = await new_page(viewport={"width": 360, "height": 700}, reduced_motion="reduce")
    site.says(MARKDOWN + "x" * 200)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("A question that is far longer than a phone is wide, and then some more of it?")
    await chat.ends("completed")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    sidebar, menu = page.locator("#sidebar"), page.get_by_role("button", name="Conversations")
    await expect(sidebar).to_be_hidden()

    await menu.click()
    await expect(menu).to_have_attribute("aria-expanded", "true")
    await expect(chat.new_chat).to_be_focused()
    assert await page.locator("#main").evaluate("element => element.inert")
    await page.keyboard.press("Escape")
    await expect(sidebar).to_be_hidden()
    await expect(menu).to_be_focused()
    await menu.click()
    await page.locator("#backdrop").click(position={"x": 350, "y": 300})
    await expect(menu).to_have_attribute("aria-expanded", "false")
    await menu.click()
    await chat.new_chat.click()
    await expect(sidebar).to_be_hidden()
    await expect(chat.title).to_have_text("New chat")
