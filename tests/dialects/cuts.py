"""The ways that a sample goes through the product when the upstream's stream is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.dialects.apps import App
from tests.dialects.judge import differences
from tests.dialects.oracle import Reading, read
from tests.dialects.sample import Sample
from tests.dialects.trial import CHAT, OUTCOME_AND_TEXT, STREAMS, STREAMS_OPENAI, Trial
from tests.dialects.upstream import Serving
from tests.dialects.wire import end_seen, message_seen, openai_seen, text_seen


def servings(sample: Sample) -> Iterator[Serving]:
    """The sample cut after each event but the last, with the body's end or without it."""
    for count in range(len(sample.frames)):
        for breaks in (False, True):
            yield Serving(sample, count, breaks)


async def cuts(trial: Trial) -> None:
    """The sample cut in each place, in all ways but those that are only about the whole."""
    bench = trial.bench
    for serving in servings(trial.sample):
        right = read(serving.frames, whole=not serving.breaks)
        await _cut(trial, f"route, {serving}", bench.plain, CHAT, serving.model, right)
        await _cut(trial, f"streams, openai, {serving}", bench.plain, STREAMS_OPENAI, serving.model, right)
        await _cut(trial, f"streams, text, {serving}", bench.plain, STREAMS, serving.model, right)
        await _cut(trial, f"transformed, {serving}", bench.transformed, CHAT, serving.model, right)
        await _cut(trial, f"chat.call, {serving}", bench.plain, CHAT, "passes-on", right, passed=serving.model)
        await _complete(trial, serving, right)
        if serving.count:  # a model that yields nothing has cut nothing
            await other_client_cut(trial, serving)


async def other_client_cut(trial: Trial, serving: Serving) -> None:
    """A model that yields the chunks of another client, whose stream is cut without a word."""
    right = read(serving.frames, whole=not serving.breaks, done=False)
    way = f"another client, {serving}"
    await _cut(trial, way, trial.bench.plain, CHAT, "other-client", right, passed=serving.model)


async def _cut(trial: Trial, way: str, app: App, path: str, model: str, right: Reading, *, passed: str = "") -> None:
    status, data, end = await trial.post(app, path, model, passed=passed)
    seen = text_seen(status, data) if path == STREAMS else openai_seen(status, data)
    trial.note(way, differences(seen, right, only=OUTCOME_AND_TEXT))
    _ended(trial, way, end, right)


async def _complete(trial: Trial, serving: Serving, right: Reading) -> None:
    way = f"complete, {serving}"
    message, end = await trial.complete("passes-on", passed=serving.model)
    seen = {"outcome": "failed"} if message is None else {**message_seen(message), "outcome": "completed"}
    trial.note(way, differences(seen, right, only=OUTCOME_AND_TEXT))
    _ended(trial, way, end, right)


def _ended(trial: Trial, way: str, end: Any, right: Reading) -> None:
    shown = ["on_end was not called"] if end is None else differences(end_seen(end), right, only=OUTCOME_AND_TEXT)
    trial.note(f"{way}, on_end", shown)
