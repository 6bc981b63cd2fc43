"""The files of a folder of cases, and the readings that are right for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.dialects.sample import KINDS, Frame, Sample

_A, _USED = "https://a.example", (5, 7)
_FAILED: dict[str, Any] = {"kind": "endings", "text": "a", "outcome": "failed", "finish_reason": None}
_IMAGES = [
    {"type": "image_url", "index": index, "image_url": {"url": f"data:image/png;base64,{data}"}}
    for index, data in enumerate(("AAAA", "BBBB"))
]
_LONG = "The word is swordfish and the rest is longer than any window of thirty characters"

CASES: dict[str, dict[str, Any]] = {
    "azure-filtered-no-message.http": {"kind": "message", "finish_reason": "content_filter", "usage": (5, 0)},
    "choice-error-finish-error.sse": _FAILED,
    "citations-last-chunk-no-delta.sse": {
        "kind": "details",
        "text": "Sunny.",
        "usage": _USED,
        "details": {"citations": [_A]},
    },
    "citations-top-level.sse": {
        "kind": "details",
        "text": "Sunny [1].",
        "usage": _USED,
        "details": {"citations": [_A], "search_results": [{"title": "A", "url": _A}]},
    },
    "constant-member-repeated.sse": {
        "kind": "reasoning",
        "text": "ok",
        "reasoning": "ab",
        "message": {"channel": "analysis"},
    },
    "error-field-line.sse": _FAILED,
    "finish-reason-empty-string.sse": {"kind": "endings", "text": "4", "usage": _USED, "finish_reason": None},
    "finish-reason-error.sse": _FAILED,
    "finish-then-more-text.sse": {"kind": "endings", "text": "ab", "usage": _USED},
    "id-changes-once.sse": {"kind": "ids", "text": "ab", "usage": _USED},
    "id-differs-per-chunk.sse": {"kind": "ids", "text": "abc", "usage": _USED},
    "images-delta.sse": {"kind": "details", "text": "Here", "details": {"images": _IMAGES}},
    "midstream-array-error.sse": _FAILED,
    "midstream-error-usage.sse": {**_FAILED, "kind": "usage", "usage": _USED},
    "midstream-event-error-flat.sse": _FAILED,
    "minimax-final-message.sse": {"kind": "message", "text": "Hello there.", "usage": _USED},
    "mistral-parts-json.http": {"kind": "parts", "text": "288", "reasoning": "12*24", "usage": _USED},
    "mistral-text-then-parts.sse": {
        "kind": "parts",
        "text": "See [1] here.",
        "usage": _USED,
        "keeps": [{"type": "reference", "reference_ids": [1]}],
    },
    "mistral-thinking-kept.sse": {"kind": "parts", "text": "Yes.", "reasoning": "Let me see.", "usage": _USED},
    "no-choice-index.http": {"kind": "message", "text": "ok"},
    "no-finish-reason-done-only.sse": {**_FAILED, "text": "4", "lenient": "completed"},
    "perplexity-message-and-delta.http": {
        "kind": "message",
        "text": "Paris",
        "usage": _USED,
        "details": {"citations": [_A]},
    },
    "reasoning-details-by-index.sse": {
        "kind": "reasoning",
        "text": "ok",
        "reasoning": "ab",
        "usage": _USED,
        "message": {
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "index": 0,
                    "format": "anthropic-claude-v1",
                    "text": "ab",
                    "signature": "S",
                }
            ]
        },
    },
    "snowflake-no-finish-reason.sse": {**_FAILED, "text": "4", "usage": _USED, "lenient": "completed"},
    "tool-calls-object.sse": {"kind": "calls", "calls": [("f", '{"a":1}')], "finish_reason": "eos_token"},
    "tool-delta-new-id-each.sse": {"kind": "calls", "calls": [("f", '{"a":1}')], "finish_reason": "tool_calls"},
    "tool-two-whole-no-id.sse": {
        "kind": "calls",
        "calls": [("f", "{}"), ("g", "{}")],
        "finish_reason": "tool_calls",
    },
    "transform-choice-message.sse": {"kind": "transforms", "text": _LONG, "usage": _USED},
    "transform-content-parts.sse": {"kind": "transforms", "text": "swordfish", "reasoning": "hm", "usage": _USED},
    "transform-reasoning-details.sse": {
        "kind": "transforms",
        "text": "ok",
        "reasoning": "swordfish",
        "usage": _USED,
    },
    "x-groq-usage.sse": {"kind": "usage", "text": "a", "usage": _USED},
}
"""By file name, what `Sample` is told of it besides its bytes."""

OTHERS = frozenset(
    {
        "aws-message.http",
        "cloudflare-errors.http",
        "error-message-in-description.http",
        "gemini-array-400.http",
        "groq-failed-generation.http",
        "minimax-base-resp-200.http",
        "openrouter-403-moderation.http",
        "openrouter-429-raw.http",
        "tgi-error-type.http",
        "xai-error-string.http",
    }
)
"""Files that are no streams or answers, but errors before one: no reading of chunks."""


class UnknownCases(Exception):
    """A folder has a file without a reading, or lacks one that has."""


def load(folder: Path) -> list[Sample]:
    """The samples in the folder *folder* or its `streams`. Raises `UnknownCases`."""
    streams = folder / "streams" if (folder / "streams").is_dir() else folder
    found = {path.name: path for path in streams.iterdir() if path.suffix in (".sse", ".http")}
    unknown, missing = found.keys() - CASES.keys() - OTHERS, CASES.keys() - found.keys()
    if unknown or missing:
        raise UnknownCases(
            f"{streams}: no reading is known for {sorted(unknown) or 'none'}; missing are {sorted(missing) or 'none'}."
        )
    samples = [_sample(path, CASES[name]) for name, path in sorted(found.items()) if name in CASES]
    return sorted(samples, key=lambda sample: list(KINDS).index(sample.kind))


def _sample(path: Path, reading: dict[str, Any]) -> Sample:
    data = path.read_bytes()
    if path.suffix == ".http":
        return Sample(
            name=path.name,
            body=data.replace(b"\r\n", b"\n").partition(b"\n\n")[2],
            remark=_remark(data, b"X-Expected:"),
            **reading,
        )
    return Sample(name=path.name, frames=tuple(_frames(data)), remark=_remark(data, b": expected:"), **reading)


def _remark(data: bytes, prefix: bytes) -> str:
    """The line that begins with *prefix*, without it."""
    lines = [line.removeprefix(prefix) for line in data.splitlines() if line.startswith(prefix)]
    return lines[0].strip().decode() if lines else ""


def _frames(data: bytes) -> list[Frame]:
    """The events of a file, without comments. The field `error` counts as an event's name and data."""
    frames = []
    for block in data.split(b"\n\n"):
        lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
        fields = {name: value.removeprefix(b" ") for name, _, value in (line.partition(b":") for line in lines)}
        if b"data" in fields:
            name = fields.get(b"event", b"").decode()
            frames.append(Frame(b"\n".join(lines) + b"\n\n", fields[b"data"], name))
        elif b"error" in fields:
            frames.append(Frame(b"\n".join(lines) + b"\n\n", fields[b"error"], "error"))
    return frames
