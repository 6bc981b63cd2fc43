"""Chunks of the size and the members of OpenAI's, with the words of a real text."""

from __future__ import annotations

import json
from functools import cache

from tests.matrix.environments import ROOT

_CHUNK = (
    '{"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,'
    '"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_06737a9306",'
    '"choices":[{"index":0,"delta":{"content":%s},"logprobs":null,"finish_reason":null}]}'
)


@cache
def _words() -> list[str]:
    return (ROOT / "docs" / "discussion" / "architecture.md").read_text("utf-8").split()


@cache
def chunks(count: int) -> list[bytes]:
    """So many chunks, a word in each."""
    words = _words()
    return [(_CHUNK % json.dumps(f" {words[place % len(words)]}")).encode() for place in range(count)]
