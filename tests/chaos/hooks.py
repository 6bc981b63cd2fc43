"""Hooks that hang, of each kind, and what becomes of the streams beside them."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from quart import Quart, request

from quart_openai_sse import Config, Principal, QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import serve_app, simulator_thread
from tests.chaos.builds import Case, Figures, measure, staged, table

HANGING, OTHERS = 40, 10
PATIENCE = 10.0
"""Seconds in which a stream should have its first output."""
LIMIT = 3.0
"""Seconds that a hook may take, if the build has an option for it."""

HANG, QUICK = "sim-fast-length-5-hang", "sim-fast-length-5"
POSSIBLE = "possible"
"""The member of figures that is false if the build does not accept this kind of hook."""
INSTANCES = {"hanging": "/hanging/v1", "other": "/other/v1"}
FIRST_OUTPUT = re.compile(rb'"content":"[^"]')


@dataclass
class Hang:
    """Where the hooks hang: in a thread, or on the event loop."""

    released: threading.Event = field(default_factory=threading.Event)
    entered: int = 0
    """How many hang or have hung."""

    def in_thread(self) -> None:
        self.entered += 1
        self.released.wait()

    async def on_loop(self) -> None:
        self.entered += 1
        await asyncio.Event().wait()


# Kinds: each registers one hook, which hangs for the model `HANG` ---------------------------------------------------


def no_hook(ai: QuartOpenAISSE, hang: Hang) -> None:
    """To compare with."""


def def_prepare(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.prepare
    def prepare(body: dict[str, Any], principal: Principal) -> None:
        if body["model"] == HANG:
            hang.in_thread()


def async_prepare(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.prepare
    async def prepare(body: dict[str, Any], principal: Principal) -> None:
        if body["model"] == HANG:
            await hang.on_loop()


def def_on_end(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.on_end
    def on_end(end: Any) -> None:
        if end.model == HANG:
            hang.in_thread()


def async_on_end(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.on_end
    async def on_end(end: Any) -> None:
        if end.model == HANG:
            await hang.on_loop()


def def_observe(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.observe
    def observe(event: Any) -> None:
        if event.record.model == HANG:
            hang.in_thread()


def async_observe(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.observe
    async def observe(event: Any) -> None:
        if event.record.model == HANG:
            await hang.on_loop()


def silent_transform(ai: QuartOpenAISSE, hang: Hang) -> None:
    @ai.transform
    async def transform(chunks: AsyncIterator[Any], chat: Any) -> AsyncIterator[Any]:
        if chat.body["model"] == HANG:
            await hang.on_loop()
        async for each in chunks:
            yield each


def def_auth(hang: Hang) -> Any:
    def auth() -> Principal:
        if "X-Hang" in request.headers:
            hang.in_thread()
        return Principal("ann")

    return auth


def async_auth(hang: Hang) -> Any:
    async def auth() -> Principal:
        if "X-Hang" in request.headers:
            await hang.on_loop()
        return Principal("ann")

    return auth


KINDS: Mapping[str, Any] = {
    "(no hook)": no_hook,
    "def prepare": def_prepare,
    "async def prepare": async_prepare,
    "def on_end": def_on_end,
    "async def on_end": async_on_end,
    "def observe": def_observe,
    "async def observe": async_observe,
    "a transform that never yields": silent_transform,
    "def auth": def_auth,
    "async def auth": async_auth,
}


# One kind -----------------------------------------------------------------------------------------------------------


async def hung(kind: str) -> Figures:
    """How long streams wait for their first output while `HANGING` hooks of a kind hang."""
    hang = Hang()
    with simulator_thread() as simulator, ThreadPoolExecutor(1) as pool:
        app = _create_app(kind, hang, base_url=simulator.base_url.replace("127.0.0.1", "localhost"))
        async with serve_app(app) as address:
            # In a thread, since the event loop may hang; not in one of the loop's own, which may hang as well.
            return await asyncio.get_running_loop().run_in_executor(pool, _drive, address, hang)


def _create_app(kind: str, hang: Hang, *, base_url: str) -> Quart:
    app = Quart(__name__)
    options: dict[str, Any] = {
        "base_url": base_url,
        "keepalive_expiry": 0,  # each stream needs a connection of its own, and so looks the name up
        "connect_timeout": 60,
        "retries": 0,
        "max_streams_per_principal": 1000,
        **time_limits(),
    }
    for name, url_prefix in INSTANCES.items():
        auth = bearer_tokens({"token-ann": "ann"})
        if name == "hanging" and kind.endswith("auth"):
            auth = KINDS[kind](hang)
        ai = QuartOpenAISSE(
            app, auth=auth, name=name, config_prefix=f"{name.upper()}_SSE_", url_prefix=url_prefix, **options
        )
        if name == "hanging" and not kind.endswith("auth"):
            KINDS[kind](ai, hang)
    return app


def time_limits() -> dict[str, float]:
    """This build's options for the time that a hook may take."""
    hooks = re.compile("(hook|prepare|on_end|observe|auth|transform).*_timeout")
    return {each.name: LIMIT for each in fields(Config) if hooks.match(each.name)}


def _drive(address: str, hang: Hang) -> Figures:
    """Starts the streams that hang, then the others; and lets the hooks go on at the end."""
    probe = Answer()
    _ask(probe, address, "hanging", QUICK, PATIENCE)
    if probe.first is None:
        return {"error": f"not possible: {probe.end}", POSSIBLE: False}
    try:
        hanging: list[Answer] = [Answer() for _ in range(HANGING)]
        _start(hanging, address, "hanging", HANG, patience=60)
        _wait_until_they_hang(hang)
        entered = hang.entered
        others: dict[str, list[Answer]] = {name: [Answer() for _ in range(OTHERS)] for name in INSTANCES}
        threads = [
            thread
            for name, answers in others.items()
            for thread in _start(answers, address, name, QUICK, patience=PATIENCE)
        ]
        for thread in threads:
            thread.join(PATIENCE + 1)
        ends = Counter(answer.end for answer in hanging)
    finally:
        hang.released.set()
    figures: Figures = {"hung": entered}
    for name, columns in COLUMNS.items():
        figures |= zip(columns, _times(others[name]), strict=True)
    return {**figures, "the hanging streams": ", ".join(f"{count} x {end}" for end, count in ends.most_common())}


def _wait_until_they_hang(hang: Hang) -> None:
    """Returns when no further hook has been called for a second.

    How many hooks a build lets begin is a part of what is measured, so there is no number to wait for.
    """
    before = -1
    while before != hang.entered:
        before = hang.entered
        time.sleep(1)


def _times(answers: Sequence[Answer]) -> tuple[str, str]:
    """The median and the longest time until the first output."""
    times = sorted(math.inf if answer.first is None else answer.first for answer in answers)
    failures = Counter(answer.end for answer in answers if answer.first is None)
    none = f"none in {PATIENCE:g} s" if set(failures) <= {WAITING} else failures.most_common(1)[0][0]
    median, worst = (
        none if math.isinf(each) else f"{each * 1000:.0f} ms" for each in (times[len(times) // 2], times[-1])
    )
    return median, worst


# The clients --------------------------------------------------------------------------------------------------------

WAITING = "waits"


@dataclass
class Answer:
    """What a client has seen so far."""

    first: float | None = None
    """Seconds until the first output."""
    end: str = WAITING


def _start(
    answers: Sequence[Answer], address: str, instance: str, model: str, *, patience: float
) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=_ask, args=(answer, address, instance, model, patience), daemon=True)
        for answer in answers
    ]
    for thread in threads:
        thread.start()
    return threads


def _ask(answer: Answer, address: str, instance: str, model: str, patience: float) -> None:
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, timeout=patience)
    headers = {"Authorization": "Bearer token-ann", "Content-Type": "application/json"}
    if model == HANG:
        headers["X-Hang"] = "1"
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    received = b""
    try:
        connection.request("POST", f"{INSTANCES[instance]}/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        while data := response.read1():
            received += data
            if answer.first is None and FIRST_OUTPUT.search(received):
                answer.first = time.monotonic() - began
            if time.monotonic() - began > patience:
                return
        answer.end = "completed" if b"[DONE]" in received else _code(received) or str(response.status)
    except TimeoutError:
        pass
    except (OSError, http.client.HTTPException) as error:
        answer.end = type(error).__name__
    finally:
        connection.close()


def _code(received: bytes) -> str:
    found = re.search(rb'"code":"(\w+)"', received)
    return found[1].decode() if found else ""


# Print --------------------------------------------------------------------------------------------------------------

COLUMNS = {
    "hanging": ("same: median", "worst"),
    "other": ("other: median", "worst "),
}
"""The columns for the streams of an instance; a space tells columns of one name apart."""

CASES: Mapping[str, Case] = {kind: partial(hung, kind) for kind in KINDS}


async def run(write: Callable[[str], object], packages: Sequence[Path]) -> bool:
    """Prints the table; whether in the last build every stream of the other instance had its first output."""
    with staged(packages) as builds:
        figures = [(build.name, await measure("hooks", list(CASES), build, at_once=3)) for build in builds]
    write(f"{HANGING} streams whose hook hangs; then {OTHERS} others in the same instance, and {OTHERS} in another\n\n")
    columns = ("hung", *COLUMNS["hanging"], *COLUMNS["other"], "the hanging streams")
    for line in table("hook", columns, figures):
        write(f"{line}\n")
    _, last = figures[-1]
    possible = [each for each in last.values() if each.get(POSSIBLE, True)]
    alone = [each for each in possible if each.get("worst ", "").endswith("ms")]
    write(f"\n{len(alone)} of {len(possible)} kinds of hooks leave the other instance alone\n")
    return alone == possible
