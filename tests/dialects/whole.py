"""The ways that a whole sample goes through the product, and what is wrong with each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator

from tests.dialects.apps import LENIENT, REDACTED, App
from tests.dialects.cuts import other_client_cut, servings
from tests.dialects.judge import brief, differences, expected_of
from tests.dialects.oracle import Reading, is_answer, is_usage_alone, read
from tests.dialects.sample import SECRET, Frame, Sample
from tests.dialects.trial import CHAT, OUTCOME_AND_TEXT, STREAMS, STREAMS_OPENAI, Trial
from tests.dialects.upstream import Serving
from tests.dialects.wire import Seen, counts, end_seen, frames_of, message_seen, openai_seen, text_seen

SHORTEST_WORD = 4
"""Shorter words of a sample may stand elsewhere in an event too."""

Way = Callable[[Trial], Awaitable[None]]


async def _route(trial: Trial) -> None:
    """The OpenAI route: the upstream's bytes."""
    sample = trial.sample
    for usage in (True, False):
        way = "route, include_usage" if usage else "route"
        status, data, end = await trial.post(trial.bench.plain, CHAT, sample.name, usage=usage)
        trial.note(way, unlike(sample, data if status == 200 else b"", usage=usage))
        trial.whole(way, _without_usage(openai_seen(status, data), unless=usage))
        trial.ended(way, end)


async def _streams_openai(trial: Trial) -> None:
    status, data, end = await trial.post(trial.bench.plain, STREAMS_OPENAI, trial.sample.name)
    way = "streams, openai"
    trial.note(way, unlike(trial.sample, data if status == 200 else b"", usage=False))
    trial.whole(way, _without_usage(openai_seen(status, data)))
    trial.ended(way, end)


def _without_usage(seen: Seen, *, unless: bool = False) -> Seen:
    """What a client sees that has not asked for usage."""
    return seen if unless else {member: value for member, value in seen.items() if member != "usage"}


async def _streams_text(trial: Trial) -> None:
    status, data, end = await trial.post(trial.bench.plain, STREAMS, trial.sample.name)
    trial.whole("streams, text", text_seen(status, data))
    trial.note("streams, text", untimed(data))
    trial.ended("streams, text", end)


async def _transformed(trial: Trial) -> None:
    """A do-nothing transform, in both formats and as one answer."""
    app, name = trial.bench.transformed, trial.sample.name
    await _joined(trial, "transformed", app, name)
    status, data, _ = await trial.post(app, STREAMS, name)
    trial.whole("transformed, text", text_seen(status, data))
    await _in_one_piece(trial, "transformed, one answer", app, name)


async def _passed_on(trial: Trial) -> None:
    """A model of the app that passes on `chat.call`."""
    app, name = trial.bench.plain, trial.sample.name
    await _joined(trial, "chat.call", app, "passes-on", name)
    status, data, _ = await trial.post(app, STREAMS, "passes-on", passed=name)
    trial.whole("chat.call, text", text_seen(status, data))
    await _in_one_piece(trial, "chat.call, one answer", app, "passes-on", name)


async def _call_itself(trial: Trial) -> None:
    """What `chat.call` gives the app's model, iterated over and awaited."""
    app = trial.bench.plain
    for model in ("passes-on", "awaits"):
        body = trial.body(model, passed=trial.sample.name)
        await app.post(CHAT, {**body, "stream": True})
        call = app.calls.pop(body["user"], None)
        way = f"the call that the model {model}"
        if call is None or trial.sample.outcome == "failed":
            trial.note(way, differences({"outcome": "completed" if call else "failed"}, expected_of(trial.sample)))
            continue
        seen = {**message_seen(call["message"]), "usage": counts(call["usage"]), "finish_reason": call["finish_reason"]}
        trial.whole(way, seen)
        trial.holds(way, call["message"])


async def _complete(trial: Trial) -> None:
    """`ai.complete`, of a model that passes on, and of an answer in one piece itself."""
    asked = [("passes-on", trial.sample.name), *([(trial.sample.name, "")] if trial.sample.body else [])]
    for model, passed in asked:
        way = f"complete, {model if passed else 'direct'}"
        message, end = await trial.complete(model, passed=passed)
        if message is None:
            trial.whole(way, {"outcome": "failed"})
        else:
            details = {name: message.get(name) for name in trial.sample.details}
            trial.whole(way, {**message_seen(message), "outcome": "completed", "details": details})
            trial.holds(way, message)
        trial.ended(way, end)


async def _direct(trial: Trial) -> None:
    """An answer in one piece on the OpenAI route: its bytes."""
    if not trial.sample.body:
        return
    status, data, end = await trial.post(trial.bench.plain, CHAT, trial.sample.name, stream=False)
    if (status, data) != (200, trial.sample.body):
        trial.note("route, one answer", [f"the body is changed: {status} {data!r:.300}"])
    trial.ended("route, one answer", end)


async def _other_client(trial: Trial) -> None:
    """A model that yields the chunks of another client, which knows nothing of `[DONE]`."""
    right = read(trial.sample.frames, done=False)
    if right.outcome != trial.sample.outcome:
        return await other_client_cut(trial, Serving(trial.sample))
    return await _joined(trial, "another client", trial.bench.plain, "other-client", trial.sample.name)


async def _redacted(trial: Trial) -> None:
    """A transform that removes a word from all places that hold text."""
    if trial.sample.kind != "transforms":
        return
    app, name = trial.bench.redacting, trial.sample.name
    for path, way in ((CHAT, "redacted"), (STREAMS, "redacted, text")):
        status, data, end = await trial.post(app, path, name)
        seen = openai_seen(status, data) if path == CHAT else text_seen(status, data)
        trial.whole(way, _without_usage(seen), redacted=REDACTED)
        shown = end_seen(end) if end is not None else {}
        if path == CHAT:
            trial.whole(f"{way}, on_end", shown, redacted=REDACTED)
        if SECRET in data.decode() or SECRET in json.dumps(shown, default=str):
            trial.note(way, ["the secret gets around the transform"])
    status, data, _ = await trial.post(app, CHAT, name, stream=False)
    if SECRET in data.decode():
        trial.note("redacted, one answer", ["the secret gets around the transform"])
    trial.whole("redacted, one answer", _answer_seen(status, data), redacted=REDACTED)


async def _masked(trial: Trial) -> None:
    """A transform that replaces all text: no word of the sample is left."""
    for path, way in ((CHAT, "masked"), (STREAMS, "masked, text")):
        status, data, end = await trial.post(trial.bench.masking, path, trial.sample.name)
        seen = openai_seen(status, data) if path == CHAT else text_seen(status, data)
        trial.note(way, differences(seen, expected_of(trial.sample), only=("outcome",)))
        shown = data.decode() + json.dumps(end_seen(end), default=str, ensure_ascii=False)
        if left := [word for word in _words(trial.sample) if word in shown]:
            trial.note(way, [f"{left} get around the transform"])


def _words(sample: Sample) -> list[str]:
    """The words that a sample says, without those so short that they stand elsewhere as well."""
    values = [value for _, arguments in sample.calls for value in json.loads(arguments).values()]
    texts = [sample.text, sample.reasoning, *(value for value in values if isinstance(value, str))]
    return [word for text in texts for word in text.split() if len(word) >= SHORTEST_WORD]


async def _two_calls(trial: Trial) -> None:
    """The same stream twice, within one of ours: whole, and cut in the first."""
    sample = trial.sample
    if sample.kind != "ids":
        return
    assert sample.usage is not None
    prompt, completion = sample.usage
    twice = Reading(text=sample.text * 2, usage=(prompt * 2, completion * 2), outcome="completed", finish_reason="stop")
    for model, way in (("twice", "two calls"), ("other-client", "two streams of another client")):
        passed = f"{sample.name} {sample.name}"
        status, data, end = await trial.post(trial.bench.plain, CHAT, model, passed=passed, usage=True)
        trial.note(way, differences(openai_seen(status, data), twice))
        trial.note(f"{way}, on_end", differences(end_seen(end), twice))
        for serving in servings(sample):
            first = read(serving.frames, done=False)
            if first.text and first.outcome == "failed":
                passed = f"{serving.model} {sample.name}"
                status, data, end = await trial.post(trial.bench.plain, CHAT, model, passed=passed)
                if (openai_seen(status, data)["outcome"], end.outcome) != ("failed", "failed"):
                    trial.note(f"{way}, the first {serving}", ["it looks complete"])


async def _without_reason(trial: Trial) -> None:
    """`require_finish_reason=False`."""
    if not trial.sample.lenient:
        return
    if trial.bench.lenient is None:
        trial.note("lenient", [f"Config has no {LENIENT}"])
        return
    expected = Reading(text=trial.sample.text, outcome=trial.sample.lenient)
    status, data, end = await trial.post(trial.bench.lenient, CHAT, trial.sample.name)
    trial.note("lenient", differences(openai_seen(status, data), expected, only=OUTCOME_AND_TEXT))
    trial.note("lenient, on_end", differences(end_seen(end), expected, only=OUTCOME_AND_TEXT))
    for serving in servings(trial.sample):
        right = read(serving.frames, whole=not serving.breaks, lenient=True)
        status, data, _ = await trial.post(trial.bench.lenient, CHAT, serving.model)
        seen = openai_seen(status, data)
        trial.note(f"lenient, {serving}", differences(seen, right, only=OUTCOME_AND_TEXT))


WAYS: tuple[Way, ...] = (
    _route,
    _streams_openai,
    _streams_text,
    _complete,
    _direct,
    _passed_on,
    _call_itself,
    _other_client,
    _transformed,
    _redacted,
    _masked,
    _two_calls,
    _without_reason,
)


async def _joined(trial: Trial, way: str, app: App, model: str, passed: str = "") -> None:
    """A stream that the product makes itself, in the OpenAI format: with one id."""
    status, data, end = await trial.post(app, CHAT, model, passed=passed, usage=True)
    seen = openai_seen(status, data)
    trial.whole(way, seen)
    if seen["outcome"] == "completed":
        trial.note(way, not_one(data))
    trial.ended(way, end)


async def _in_one_piece(trial: Trial, way: str, app: App, model: str, passed: str = "") -> None:
    status, data, end = await trial.post(app, CHAT, model, stream=False, passed=passed)
    seen = _answer_seen(status, data)
    trial.whole(way, seen)
    trial.holds(way, seen.get("message"), json.loads(data))
    trial.ended(way, end)


def _answer_seen(status: int, data: bytes) -> Seen:
    if status != 200:
        return {"outcome": "failed"}
    answer = json.loads(data)
    [choice] = answer["choices"]
    message = choice.get("message")
    reason = choice["finish_reason"]
    return {**message_seen(message), "outcome": "completed", "finish_reason": reason, "usage": counts(answer["usage"])}


def not_one(body: bytes) -> Iterator[str]:
    """What a completed stream that the product makes has not one of: its id; for each choice, its role and finish."""
    chunks = [json.loads(frame.data) for frame in frames_of(body) if not frame.is_done]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    if len(ids := {chunk.get("id") for chunk in chunks}) != 1:
        yield f"it has the ids {ids}"
    for index in {choice["index"] for choice in choices}:
        own = [choice for choice in choices if choice["index"] == index]
        roles = [role for choice in own if (role := (choice.get("delta") or {}).get("role"))]
        reasons = [reason for choice in own if (reason := choice.get("finish_reason"))]
        if (len(roles), len(reasons)) != (1, 1):
            yield f"its choice {index} has the roles {roles} and the finish reasons {reasons}"


def untimed(body: bytes) -> Iterator[str]:
    """The events of the `text` format that lack their time."""
    for frame in frames_of(body):
        if frame.event in ("delta", "reasoning", "details") and not isinstance(
            json.loads(frame.data).get("t"), float | int
        ):
            yield f"event {frame.event} has no time: {frame.data.decode()}"


def unlike(sample: Sample, body: bytes, *, usage: bool) -> Iterator[str]:
    """How the events of a response differ from the upstream's, which the OpenAI route sends on unchanged."""
    sent = [frame.data for frame in sample.frames if not frame.is_done]
    right = [data for data in sent if usage or not _withheld(data)]
    if sample.body or is_answer(sample.frames):
        return  # an answer in place of a stream becomes chunks, whose reading is compared
    shown = frames_of(body)
    if sample.outcome == "completed":
        if [frame.data for frame in shown] != [*right, b"[DONE]"]:
            yield f"the events are {brief([*_changed(shown, right)])}"
    else:
        events = [frame.data for frame in shown[:-1]]
        if events != right[: len(events)]:
            yield f"before its failure the events are {brief([*_changed(shown, right)])}"


def _withheld(data: bytes) -> bool:
    return isinstance(json.loads(data), dict) and is_usage_alone(data)


def _changed(shown: list[Frame], right: list[bytes]) -> Iterator[str]:
    """The first event that differs."""
    for number, (frame, data) in enumerate(itertools.zip_longest(shown, [*right, b"[DONE]"])):
        if frame is None or frame.data != data:
            yield f"event {number + 1}: {frame.data.decode() if frame else 'missing'}"
            yield f"instead of {data.decode() if data else 'none'}"
            return
