"""What the Python clients share: the job on standard input, one line of JSON for each check on standard output.

It runs in the clients' own environments, which have nothing of this project.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Any

PATIENCE = 25.0  # seconds, for one check

Check = Callable[["Target"], Awaitable[None]]

_numbers = itertools.count()


class Target:
    """One server, as one check sees it."""

    def __init__(self, job: dict[str, Any], url: str) -> None:
        self.url = url
        self.token: str = job["token"]
        self.question: str = job["question"]
        self.answer: str = job["answer"]
        self.tokens: int = job["tokens"]
        self.messages = [{"role": "user", "content": self.question}]
        self._job = job

    def model(self, kind: str) -> str:
        """A model that nobody else asks: `held`, `cut` or `fast`."""
        return f"{self._job['model']}-{kind}-{self._job['client']}-{next(_numbers)}x"

    async def release(self, model: str) -> None:
        """Lets a held stream go on: it waits after its first and after its second token."""
        await asyncio.to_thread(self._control, "POST", f"/release/{model}")

    async def was_cancelled(self, model: str) -> None:
        """Waits until the request upstream has ended, which it must not have done by itself."""
        outcome = (await asyncio.to_thread(self._control, "GET", f"/ended/{model}"))["outcome"]
        same(outcome, "closed_by_peer")

    def _control(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self._job["control"] + path, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.load(response)


def run(checks: dict[str, Check], *, packages: Iterable[str]) -> None:
    """Does the job: each of *checks* against each server."""
    asyncio.run(run_async(checks, {name: version(name) for name in packages}))


async def run_async(checks: dict[str, Check], versions: dict[str, str]) -> None:
    """Does the job within a running event loop."""
    job = json.loads(sys.stdin.readline())
    _say({"versions": versions})
    for url in job["urls"]:
        for name, check in checks.items():
            _say({"url": url, "check": name, "problem": await _problem(check, Target(job, url))})


async def _problem(check: Check, target: Target) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            await check(target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def same(found: object, expected: object) -> None:
    """Raises unless they are equal; the message is short even where they are long."""
    if found != expected:
        raise AssertionError(f"{_short(found)} is not {_short(expected)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:60]}…{text[-50:]} ({len(text)})"


TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches.",
        "strict": True,  # openai-python puts no others together
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
