"""The chunks of a stream that a model or a transform makes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.producers.joined_stream import JoinedStream
from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.completeness import Completion

_values = st.recursive(
    st.text(min_size=1, max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.text("xyz"), inner, min_size=1, max_size=2)
    ),
    max_leaves=6,
)
_members = st.dictionaries(
    st.sampled_from(["content", "reasoning", "reasoning_details", "tool_calls", "refusal", "audio", "images", "new"]),
    _values,
    min_size=1,
    max_size=3,
)


def joined() -> JoinedStream:
    return JoinedStream(Completion(), stream_id="s", model="m")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in *value*, with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@given(_members, st.dictionaries(st.sampled_from(["logprobs", "content_filter_results"]), _values), _members, st.data())
def test_a_chunk_that_was_changed_in_place_at_any_depth_is_sent_as_changed(
    delta: dict[str, Any], members: dict[str, Any], others: dict[str, Any], data: st.DataObject
) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": delta, **members, "finish_reason": None}], **others}
    changed = deepcopy(chunk)
    [choice] = changed["choices"]
    container, key = data.draw(st.sampled_from(places([choice["delta"], *[choice[name] for name in members]])[1:]))
    container[key] = "changed"
    *_, entry = joined().entries(changed, 0.0)
    sent = json.decode(entry.data)
    assert sent["choices"] == [choice]
    assert {name: sent[name] for name in others} == others
