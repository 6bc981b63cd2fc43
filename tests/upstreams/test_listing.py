"""How an upstream's list of models is read."""

from __future__ import annotations

import pytest

from quart_openai_sse.errors import UpstreamError
from quart_openai_sse.upstreams.listing import model_object, read_models

READ = {
    "OpenAI's list": (b'{"object":"list","data":[{"id":"a","x":1},{"id":"b"}]}', [{"id": "a", "x": 1}, {"id": "b"}]),
    "a bare array": (b'[{"id":"a"}]', [{"id": "a"}]),
    "no models": (b'{"data":[]}', []),
    "no models, as Ollama says it": (b'{"data":null}', []),
    "no models in an array": (b"[]", []),
    "null": (b"null", []),
    "one bad entry": (b'{"data":[{"name":"x"},{"id":5},{"id":""},null,7,"id",["id"],{"id":"a"}]}', [{"id": "a"}]),
}
UNREADABLE = [b"", b"<html>", b"{}", b"7", b'"data"', b'{"data":7}', b'{"data":"abc"}', b'{"data":{"id":"a"}}', b"\xff"]
UNREADABLE += [b'{"data":[1]}', b'{"data":[{"id":5}]}', b'{"models":[{"id":"a"}]}', b"[" * 100_000]


@pytest.mark.parametrize(("data", "models"), READ.values(), ids=READ)
def test_a_list_has_the_entries_that_can_be_read(data: bytes, models: object) -> None:
    assert read_models(data) == models


@pytest.mark.parametrize("data", UNREADABLE)
def test_what_is_no_list_is_the_upstreams_fault(data: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        read_models(data)


def test_a_model_object_is_openais() -> None:
    model = model_object("m", "app")
    assert (model["id"], model["object"], model["owned_by"], type(model["created"])) == ("m", "model", "app", int)
