"""OpenAI's SDKs and the AI SDK, reading the original and what the product makes of it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from quart_openai_sse.testing import serve_app
from tests.conftest import QUESTION
from tests.dialects.judge import brief, differences, expected_of
from tests.dialects.oracle import Reading, is_answer, read
from tests.dialects.sample import Sample, frame
from tests.dialects.trial import Bench
from tests.dialects.upstream import Serving
from tests.matrix.environments import _node_modules
from tests.matrix.processes import communicate

TOKEN = "token-ann"
PROGRAM = Path(__file__).with_name("sdk.mjs")
Seen = dict[str, Any]
"""What a reader found, or `{"error": …}`."""


@dataclass(frozen=True)
class Targets:
    """The addresses that an SDK is given."""

    original: str
    ours: str
    transformed: str


@asynccontextmanager
async def targets(bench: Bench) -> AsyncIterator[Targets]:
    """The apps on sockets, until the block is left."""
    async with serve_app(bench.plain.app) as plain, serve_app(bench.transformed.app) as transformed:
        yield Targets(bench.upstream, f"http://{plain}/v1", f"http://{transformed}/v1")


@dataclass(frozen=True)
class Comparison:
    """A reader, of the same model at two addresses."""

    reader: str
    sample: Sample
    serving: Serving
    streams: bool = True
    joined: bool = False
    """Whether the product makes the stream itself: behind a transform."""

    @property
    def way(self) -> str:
        return f"{self.reader}, {'transformed' if self.joined else 'route'}, {self.serving}"

    @property
    def right(self) -> Reading:
        """What the reader should read, or that it should raise."""
        return read(self.serving.frames, whole=not self.serving.breaks)

    @property
    def needs_original(self) -> bool:
        """Whether the original says what is right: a stream that failed must raise, whatever it did."""
        return self.right.outcome == "completed"

    def judge(self, original: Seen | None, ours: Seen) -> Iterator[str]:
        """What is wrong in *ours*."""
        if self.right.outcome == "failed":
            if "error" not in ours:
                yield f"it raises nothing, and reads {brief(ours)}"
            return
        original = original or {"error": "no reading"}
        made = self.joined or is_answer(self.serving.frames)
        if "error" in original and (made or "error" in ours):
            return  # the SDK cannot read the original
        if not made or not self.streams:
            if _with_sent_ids(original, self.sample) != _with_sent_ids(ours, self.sample):
                yield f"it reads {brief(ours)}, and in the original {brief(original)}"
        elif "error" in ours:
            yield f"it raises {ours['error']}, and nothing in the original"
        else:
            yield from self._judge_joined(original, ours)

    def _judge_joined(self, original: Seen, ours: Seen) -> Iterator[str]:
        """A stream that the product makes is not the original, but says the same, or more than the SDK read in that."""
        if "chunks" in ours:
            yield from differences(vars(read([*map(frame, ours["chunks"]), frame("[DONE]")])), expected_of(self.sample))
        elif "text" in ours:
            before, seen = _parts(original), _parts(ours)
            more = {member: value for member, value in seen.items() if value != before[member]}
            yield from differences(more, expected_of(self.sample))
            if not more and ours["finishReason"] != original["finishReason"] and self.sample.finish_reason:
                yield f"the finish reason is {ours['finishReason']}, and {original['finishReason']} in the original"


CUT = ("openai-python", "openaiStream", "aiStream")
"""The readers that are given the cut streams too."""


def comparisons(samples: Sequence[Sample], readers: dict[str, bool]) -> Iterator[Comparison]:
    """All of them. *readers* maps each to whether it asks for a stream."""
    for sample in samples:
        for reader, stream in readers.items():
            if stream:
                yield Comparison(reader, sample, Serving(sample))
                yield Comparison(reader, sample, Serving(sample), joined=True)
                for count in range(len(sample.frames)) if reader in CUT else ():
                    yield Comparison(reader, sample, Serving(sample, count))
            elif sample.body:
                yield Comparison(reader, sample, Serving(sample), streams=False)


def _with_sent_ids(value: Any, sample: Sample) -> Any:
    """A reading without the ids that nobody sent: an SDK makes its own for calls that have none."""
    if isinstance(value, list):
        return [_with_sent_ids(each, sample) for each in value]
    if not isinstance(value, dict):
        return value
    made = "id" in value and json.dumps(value["id"]).encode() not in sample.wire + sample.body
    return {name: _with_sent_ids(each, sample) for name, each in value.items() if name != "id" or not made}


def _parts(seen: Seen) -> Seen:
    """What the AI SDK read, to be compared with a reading. It has finish reasons of its own."""
    calls = [(name, json.dumps(arguments)) for name, arguments in seen["calls"]]
    return {"text": seen["text"], "reasoning": seen["reasoning"], "calls": calls}


# Python -------------------------------------------------------------------------------------------------------------


async def python(samples: Sequence[Sample], bench: Bench, note: Callable[[Sample, str], object]) -> None:
    """OpenAI's SDK for Python: its chunks, its assembled completion, and its answers."""
    async with targets(bench) as at:
        warnings.simplefilter("ignore")  # Pydantic's, about the forms that these samples are about
        clients = {url: openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) for url in vars(at).values()}
        for comparison in comparisons(samples, dict.fromkeys(PYTHON, True) | {"openai-python, answer": False}):
            reader, model = PYTHON.get(comparison.reader, _answer), comparison.serving.model
            original = await _tried(reader, clients[at.original], model) if comparison.needs_original else None
            ours = await _tried(reader, clients[at.transformed if comparison.joined else at.ours], model)
            for problem in comparison.judge(original, ours):
                note(comparison.sample, f"{comparison.way}: {problem}")
        for client in clients.values():
            await client.close()


Read = Callable[[openai.AsyncOpenAI, str], Any]


async def _tried(reader: Read, client: openai.AsyncOpenAI, model: str) -> Seen:
    try:
        found: Seen = await reader(client, model)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return found


async def _chunks(client: openai.AsyncOpenAI, model: str) -> Seen:
    messages: Any = QUESTION
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options)
    return {"chunks": [chunk.model_dump(mode="json", exclude_unset=True, warnings=False) async for chunk in stream]}


async def _final(client: openai.AsyncOpenAI, model: str) -> Seen:
    messages: Any = QUESTION
    options: Any = {"include_usage": True}
    async with client.chat.completions.stream(model=model, messages=messages, stream_options=options) as stream:
        final = await stream.get_final_completion()
    return {"final": final.model_dump(mode="json", warnings=False)}


async def _answer(client: openai.AsyncOpenAI, model: str) -> Seen:
    messages: Any = QUESTION
    answer = await client.chat.completions.create(model=model, messages=messages)
    return {"final": answer.model_dump(mode="json", warnings=False)}


PYTHON: dict[str, Read] = {"openai-python": _chunks, "openai-python, assembled": _final}


# Node ---------------------------------------------------------------------------------------------------------------

NODE = {"openaiStream": True, "openaiFinal": True, "openaiAnswer": False, "aiStream": True, "aiAnswer": False}


async def node(samples: Sequence[Sample], bench: Bench, note: Callable[[Sample, str], object], *, cache: Path) -> None:
    """OpenAI's SDK for JavaScript and the AI SDK. Their packages are installed in *cache*."""
    folder = await _node_modules(cache)
    program = Path(shutil.copy(PROGRAM, folder))
    async with targets(bench) as at:
        wanted = list(comparisons(samples, NODE))
        jobs = [job for number, each in enumerate(wanted) for job in _jobs(number, each, at)]
        code, output, errors = await communicate(
            ["node", program], "\n".join(map(json.dumps, jobs)).encode(), env=os.environ
        )
    if code:
        raise RuntimeError(f"node ended with {code}:\n{errors[-2000:]}")
    found = {tuple(line.pop("key")): line for line in map(json.loads, output.decode().splitlines())}
    for number, comparison in enumerate(wanted):
        ours = found.get((number, "ours"), {"error": "no reading"})
        if ours.get("error") in ("no reading", "Error: not within 20 s"):
            note(comparison.sample, f"{comparison.way}: {ours['error']}")
        for problem in comparison.judge(found.get((number, "original")), ours):
            note(comparison.sample, f"{comparison.way}: {problem}")


def _jobs(number: int, comparison: Comparison, at: Targets) -> Iterator[dict[str, Any]]:
    urls = {"ours": at.transformed if comparison.joined else at.ours}
    if comparison.needs_original:
        urls["original"] = at.original
    for which, url in urls.items():
        yield {
            "key": [number, which],
            "reader": comparison.reader,
            "url": url,
            "token": TOKEN,
            "model": comparison.serving.model,
            "names": [name for name, _ in comparison.sample.calls],
        }
