"""The ways that a sample goes through the product, whole and cut, and what is wrong with each."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from quart_openai_sse import OpenAISSEError, Principal
from tests.conftest import QUESTION
from tests.dialects.apps import LENIENT, REDACTED, App, create_app, has_lenient
from tests.dialects.judge import brief, differences, expected_of, kept
from tests.dialects.oracle import Reading, is_answer, is_usage_alone, read
from tests.dialects.sample import SECRET, Frame, Sample
from tests.dialects.upstream import Serving, dialect_upstream
from tests.dialects.wire import Seen, counts, end_seen, frames_of, message_seen, normalized, openai_seen, text_seen

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams"
OUTCOME_AND_TEXT = ("outcome", "text")
SHORTEST_WORD = 4

_numbers = itertools.count()


@dataclass
class Bench:
    """The apps that the samples go through."""

    plain: App
    transformed: App
    redacting: App
    masking: App
    lenient: App | None
    """`None` as long as the product has no such option."""
    upstream: str
    """The upstream's address."""


@asynccontextmanager
async def bench(samples: Iterable[Sample]) -> AsyncIterator[Bench]:
    """The apps before an upstream that serves *samples*, until the block is left."""
    async with dialect_upstream(samples) as server:
        url = server.base_url
        yield Bench(
            create_app(url),
            create_app(url, transform="nothing"),
            create_app(url, transform="redacts"),
            create_app(url, transform="masks"),
            create_app(url, options={LENIENT: False}) if has_lenient() else None,
            url,
        )


@dataclass
class Trial:
    """One sample in all ways."""

    bench: Bench
    sample: Sample
    problems: list[str] = field(default_factory=list)
    messages: dict[str, Any] = field(default_factory=dict)
    """The message of each way in which the sample is whole."""
    detail_names: set[str] = field(default_factory=set)
    """The members that some way counts as details: `ai.complete` adds them to the message."""

    async def run(self) -> list[str]:
        """Sends the sample in all ways. Returns what is wrong, each with its way."""
        self._check_the_oracle()
        for way in (*WAYS, *((_cuts,) if self.sample.frames else ())):
            try:
                await way(self)
            except Exception as error:
                self.note(way.__name__.strip("_"), [f"{type(error).__name__}: {error}"])
        self._compare_messages()
        return self.problems

    def note(self, way: str, found: Iterable[str]) -> None:
        """Adds what is wrong in a way."""
        self.problems += [f"{way}: {each}" for each in found]

    def whole(self, way: str, seen: Seen, *, redacted: str = "") -> None:
        """Compares what a way shows of the whole sample."""
        self.note(way, differences(seen, expected_of(self.sample, redacted=redacted)))
        if self.sample.outcome == "completed" and "message" in seen and not redacted:
            self.messages[way] = seen["message"]

    def holds(self, way: str, message: Any, details: Any = None) -> None:
        """Compares the members that the message must have."""
        if self.sample.outcome == "completed":
            self.note(way, kept(self.sample, message, details))

    async def post(
        self, app: App, path: str, model: str, *, stream: bool = True, passed: str = "", usage: bool = False
    ) -> tuple[int, bytes, Any]:
        """Sends a request: the status and the body of the response, and what `on_end` was given."""
        body = self.body(model, passed=passed)
        if usage:
            body["stream_options"] = {"include_usage": True}
        status, data = await app.post(path, {**body, "stream": stream})
        return status, data, app.ends.pop(body["user"], None)

    def body(self, model: str, *, passed: str = "") -> dict[str, Any]:
        """A request. *passed* are the models that an app's model asks for."""
        user = f"request-{next(_numbers)}"
        return {"model": model, "messages": QUESTION, "user": user, "metadata": {"models": passed}}

    def _check_the_oracle(self) -> None:
        """The oracle's reading must be the one that the sample was written with."""
        self.note("the harness itself", differences(vars(read(self.sample.frames)), expected_of(self.sample)))

    def _compare_messages(self) -> None:
        """The same message in each way: the first is the one that the others are compared with."""
        compared = {
            way: normalized(message or {}, self.sample.frames, self.detail_names)
            for way, message in self.messages.items()
        }
        for way, message in compared.items():
            first = next(iter(compared))
            if message != compared[first]:
                self.note(way, [f"the message is {brief(message)}, and {brief(compared[first])} in {first}"])


Way = Callable[[Trial], Awaitable[None]]


# Whole --------------------------------------------------------------------------------------------------------------


async def _route(trial: Trial) -> None:
    """The OpenAI route: the upstream's bytes."""
    sample = trial.sample
    for usage in (True, False):
        way = "route, include_usage" if usage else "route"
        status, data, end = await trial.post(trial.bench.plain, CHAT, sample.name, usage=usage)
        trial.note(way, unlike(sample, data if status == 200 else b"", usage=usage))
        trial.whole(way, _without_usage(openai_seen(status, data), unless=usage))
        _ended(trial, f"{way}, on_end", end)


async def _streams_openai(trial: Trial) -> None:
    status, data, end = await trial.post(trial.bench.plain, f"{STREAMS}?format=openai", trial.sample.name)
    way = "streams, openai"
    trial.note(way, unlike(trial.sample, data if status == 200 else b"", usage=False))
    trial.whole(way, _without_usage(openai_seen(status, data)))
    _ended(trial, f"{way}, on_end", end)


def _without_usage(seen: Seen, *, unless: bool = False) -> Seen:
    """What a client sees that has not asked for usage."""
    return seen if unless else {member: value for member, value in seen.items() if member != "usage"}


async def _streams_text(trial: Trial) -> None:
    status, data, end = await trial.post(trial.bench.plain, STREAMS, trial.sample.name)
    trial.whole("streams, text", text_seen(status, data))
    trial.note("streams, text", untimed(data))
    _ended(trial, "streams, text, on_end", end)


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
        app, way = trial.bench.plain, f"complete, {model if passed else 'direct'}"
        body = trial.body(model, passed=passed)
        async with app.app.app_context():
            try:
                message = await app.ai.complete(body, principal=Principal("ann"))
            except OpenAISSEError:
                trial.whole(way, {"outcome": "failed"})
                continue
            finally:
                end = app.ends.pop(body["user"], None)
        details = {name: message.get(name) for name in trial.sample.details}
        trial.whole(way, {**message_seen(message), "outcome": "completed", "details": details})
        trial.holds(way, message)
        _ended(trial, f"{way}, on_end", end)


async def _direct(trial: Trial) -> None:
    """An answer in one piece on the OpenAI route: its bytes."""
    if not trial.sample.body:
        return
    status, data, end = await trial.post(trial.bench.plain, CHAT, trial.sample.name, stream=False)
    if (status, data) != (200, trial.sample.body):
        trial.note("route, one answer", [f"the body is changed: {status} {data!r:.300}"])
    _ended(trial, "route, one answer, on_end", end)


async def _other_client(trial: Trial) -> None:
    """A model that yields the chunks of another client, which knows nothing of `[DONE]`."""
    right = read(trial.sample.frames, done=False)
    if right.outcome != trial.sample.outcome:
        return await _other_client_cut(trial, Serving(trial.sample))
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
        for serving in _servings(sample):
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
    for serving in _servings(trial.sample):
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
    _ended(trial, f"{way}, on_end", end)


async def _in_one_piece(trial: Trial, way: str, app: App, model: str, passed: str = "") -> None:
    status, data, end = await trial.post(app, CHAT, model, stream=False, passed=passed)
    seen = _answer_seen(status, data)
    trial.whole(way, seen)
    trial.holds(way, seen.get("message"), json.loads(data))
    _ended(trial, f"{way}, on_end", end)


def _answer_seen(status: int, data: bytes) -> Seen:
    if status != 200:
        return {"outcome": "failed"}
    answer = json.loads(data)
    [choice] = answer["choices"]
    message = choice.get("message")
    reason = choice["finish_reason"]
    return {**message_seen(message), "outcome": "completed", "finish_reason": reason, "usage": counts(answer["usage"])}


def _ended(trial: Trial, way: str, end: Any) -> None:
    if end is None:
        trial.note(way, ["it was not called"])
        return
    seen = end_seen(end)
    trial.whole(way, seen)
    trial.holds(way, end.message, seen["details"])
    if isinstance(seen["details"], Mapping):
        trial.detail_names.update(seen["details"])


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


# Cut ----------------------------------------------------------------------------------------------------------------


def _servings(sample: Sample) -> Iterator[Serving]:
    """The sample cut after each event but the last, with the body's end or without it."""
    for count in range(len(sample.frames)):
        for breaks in (False, True):
            yield Serving(sample, count, breaks)


async def _cuts(trial: Trial) -> None:
    bench = trial.bench
    for serving in _servings(trial.sample):
        right = read(serving.frames, whole=not serving.breaks)
        await _cut(trial, f"route, {serving}", bench.plain, CHAT, serving.model, right)
        await _cut(trial, f"streams, text, {serving}", bench.plain, STREAMS, serving.model, right)
        await _cut(trial, f"transformed, {serving}", bench.transformed, CHAT, serving.model, right)
        await _cut(trial, f"chat.call, {serving}", bench.plain, CHAT, "passes-on", right, passed=serving.model)
        if serving.count:  # a model that yields nothing has cut nothing
            await _other_client_cut(trial, serving)


async def _other_client_cut(trial: Trial, serving: Serving) -> None:
    right = read(serving.frames, whole=not serving.breaks, done=False)
    way = f"another client, {serving}"
    await _cut(trial, way, trial.bench.plain, CHAT, "other-client", right, passed=serving.model)


async def _cut(trial: Trial, way: str, app: App, path: str, model: str, right: Reading, *, passed: str = "") -> None:
    status, data, end = await trial.post(app, path, model, passed=passed)
    seen = openai_seen(status, data) if path == CHAT else text_seen(status, data)
    trial.note(way, differences(seen, right, only=OUTCOME_AND_TEXT))
    if end is None:
        trial.note(f"{way}, on_end", ["it was not called"])
    else:
        trial.note(f"{way}, on_end", differences(end_seen(end), right, only=OUTCOME_AND_TEXT))
