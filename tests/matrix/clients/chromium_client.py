"""Chromium: `fetch` and `EventSource` in a page of the server's own origin."""

from __future__ import annotations

import asyncio
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import Target, run_async, same
from playwright.async_api import BrowserContext, Page, async_playwright

HERE = Path(__file__).parent
EXECUTABLES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Tab:
    """A page of the origin that is checked at the moment."""

    def __init__(self, context: BrowserContext, kind: str) -> None:
        self._context = context
        self._kind = kind
        self._page: Page | None = None
        self._target: Target | None = None
        self._statuses: list[tuple[str, int]] = []

    async def check(self, name: str, target: Target) -> None:
        """Runs one check of `fetch.js` or `eventsource.js`."""
        if self._target is None or self._target.url != target.url:
            await self._open(target)
        self._target = target
        facts = {"url": target.url, "token": target.token, "messages": target.messages}
        same(await self._page.evaluate(f"(facts) => checks.{name}(facts)", facts), expected(name, target))

    async def _open(self, target: Target) -> None:
        if self._page is not None:
            await self._page.close()
        self._page = page = await self._context.new_page()
        page.on("response", lambda response: self._statuses.append((response.url, response.status)))
        for function in (target.model, target.release, self.statuses):
            await page.expose_function(function.__name__, function)
        await page.expose_function("wasCancelled", target.was_cancelled)
        await page.goto(f"{target.url}/health")  # any document of the origin: its address is what counts
        await page.add_script_tag(path=HERE / "page.js")
        await page.add_script_tag(path=HERE / f"{self._kind}.js")

    def statuses(self, url: str) -> list[int]:
        """What the server has answered to requests of *url*."""
        return [status for asked, status in self._statuses if asked == url]


def expected(name: str, target: Target) -> Any:
    """What the check of this name returns."""
    return {
        "text": target.answer,
        "live": target.answer,
        "whole": target.answer,
        "resume": target.answer,
        "usage": target.tokens,
        "auth": "401",
        "model": "model_not_found",
        "cut": "upstream_truncated",
        "leave": "left",
        "end": "over",
        "stop": "stopped",
    }[name]


async def main(kind: str, names: list[str]) -> None:
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = Tab(await browser.new_context(), kind)
        await run_async({name: partial(tab.check, name) for name in names}, {"chromium": browser.version})
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2].split(",")))
