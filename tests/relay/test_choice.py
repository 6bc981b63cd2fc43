"""What is checked of a request before it is sent: OpenAI's ranges, and only for OpenAI."""

from __future__ import annotations

from typing import Any

import pytest

from quart_openai_sse import Principal
from quart_openai_sse.config import Config
from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.testing import ScriptedUpstream
from quart_openai_sse.upstreams.openai import OpenAIUpstream
from quart_openai_sse.upstreams.several import Candidate, Upstreams
from tests.conftest import QUESTION, CreateApp, Serve

BODY: dict[str, Any] = {"model": "scripted", "messages": QUESTION}
OUT_OF_RANGE = {
    "temperature": {**BODY, "temperature": 2.5},
    "max_tokens": {**BODY, "max_tokens": -1},
    "messages[0].role": {**BODY, "messages": [{"role": "ipython", "content": "1"}]},
}
PATHS = ("/v1/chat/completions", "/v1/streams")


class OpenAI(ScriptedUpstream):
    """An upstream that says it is OpenAI's API."""

    is_openai = True


@pytest.mark.parametrize("param", OUT_OF_RANGE)
@pytest.mark.parametrize("path", PATHS)
async def test_a_request_to_openai_must_be_in_its_ranges(
    create_app: CreateApp, serve: Serve, path: str, param: str
) -> None:
    options = {"base_url": "https://api.openai.com/v1", "api_key": "sk-none"}  # it is refused, so nothing is sent there
    client = await serve(create_app(**options)[0])
    response = await client.post(path, json=OUT_OF_RANGE[param])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", param)


@pytest.mark.parametrize("param", OUT_OF_RANGE)
@pytest.mark.parametrize("path", PATHS)
async def test_another_upstream_gets_what_openai_would_refuse(
    create_app: CreateApp, serve: Serve, path: str, param: str
) -> None:
    upstream = ScriptedUpstream("hi")
    app, _ = create_app(upstream)
    response = await (await serve(app)).post(path, json=OUT_OF_RANGE[param], headers={"Accept": "text/event-stream"})
    assert response.status_code == 200
    assert upstream.requests[0].items() >= OUT_OF_RANGE[param].items()


async def test_an_apps_own_start_and_complete_are_checked_as_well(create_app: CreateApp) -> None:
    app, ai = create_app(OpenAI("hi"))
    async with app.test_request_context("/", method="POST"):
        for ask in (ai.start, ai.complete):
            with pytest.raises(InvalidRequest, match="temperature must be a number from 0 to 2"):
                await ask({**BODY, "temperature": 2.5}, principal=Principal("ann"))


async def test_what_prepare_makes_of_a_request_is_checked_and_may_mend_it(create_app: CreateApp, serve: Serve) -> None:
    upstream = OpenAI("hi")
    app, ai = create_app(upstream)

    @ai.prepare
    async def limit(body, principal):
        return {**body, "temperature": {2.5: 2, 1: 3}[body["temperature"]]}

    client = await serve(app)
    assert (await client.post(PATHS[0], json={**BODY, "temperature": 2.5})).status_code == 200
    assert (await client.post(PATHS[0], json={**BODY, "temperature": 1})).status_code == 400
    assert [request["temperature"] for request in upstream.requests] == [2]


async def test_a_model_of_the_app_gets_what_it_is_asked(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(OpenAI())

    @ai.model("support")
    async def support(chat):
        yield str(chat.body["temperature"])

    body = {**BODY, "model": "support", "temperature": 2.5}
    response = await (await serve(app)).post("/v1/chat/completions", json=body)
    assert response.json()["choices"][0]["message"]["content"] == "2.5"


SEVERAL = {
    "all are OpenAI": ([Candidate(upstream=OpenAI("a")), Candidate(upstream=OpenAI("b"))], 400),
    "one is not": ([Candidate(upstream=OpenAI("a")), Candidate(upstream=ScriptedUpstream("b"))], 200),
    "the other has not the model": (
        [
            Candidate(upstream=OpenAI("a"), aliases={"scripted": "gpt"}, models=frozenset()),
            Candidate(upstream=ScriptedUpstream("b"), models=frozenset({"qwen"})),
        ],
        400,
    ),
    "OpenAI has not the model": (
        [
            Candidate(upstream=OpenAI("a"), models=frozenset({"gpt"})),
            Candidate(upstream=ScriptedUpstream("b")),
        ],
        200,
    ),
}


@pytest.mark.parametrize(("candidates", "status"), SEVERAL.values(), ids=SEVERAL)
async def test_of_several_upstreams_each_that_has_the_model_must_be_openai(
    create_app: CreateApp, serve: Serve, candidates: list[Candidate], status: int
) -> None:
    app, _ = create_app(Upstreams(candidates))
    response = await (await serve(app)).post("/v1/chat/completions", json=OUT_OF_RANGE["temperature"])
    assert response.status_code == status


async def test_an_upstream_in_a_test_is_openai_only_if_it_says_so(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(OpenAI())
    client = await serve(app)
    with ai.override(app, upstream=ScriptedUpstream("hi")):
        response = await client.post("/v1/chat/completions", json=OUT_OF_RANGE["temperature"])
    assert response.status_code == 200


HOSTS = {
    "https://api.openai.com/v1": True,
    "https://API.OpenAI.com:443/v1": True,
    "https://eu.api.openai.com/v1": True,
    "https://my.openai.azure.com/openai/v1": False,
    "https://api.openai.com.example/v1": False,
    "https://notapi.openai.com/v1": False,
    "https://proxy.example/api.openai.com/v1": False,
    "http://127.0.0.1:8080/v1": False,
}


@pytest.mark.parametrize(("base_url", "openai"), HOSTS.items())
def test_openai_is_known_by_its_host(base_url: str, openai: bool) -> None:
    assert OpenAIUpstream(Config(base_url=base_url)).is_openai is openai
