"""What is checked of a request before it is sent: its members, and OpenAI's ranges, but only for OpenAI."""

from __future__ import annotations

import json
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
    upstream = OpenAI("hi")
    client = await serve(create_app(upstream)[0])
    response = await client.post(path, json=OUT_OF_RANGE[param])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", param)
    assert upstream.requests == []


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
    assert Upstreams.from_config(Config(base_url=base_url)).asks_only_openai("m") is openai


# Members ------------------------------------------------------------------------------------------------------------

REDIRECTING = {
    "api_base": {"api_base": "http://evil.example"},
    "api_key": {"api_key": "sk-mine"},
    "extra_headers": {"extra_headers": {"Authorization": "Bearer mine"}},
    "user_config": {"user_config": {"model_list": []}},
    "extra_body.base_url": {"extra_body": {"google": {}, "base_url": "http://evil.example"}},
    "langfuse_host": {"langfuse_host": "http://evil.example"},
    "metadata.langfuse_host": {"metadata": {"langfuse_host": "http://evil.example"}},
}


@pytest.mark.parametrize("param", REDIRECTING)
@pytest.mark.parametrize("path", PATHS)
async def test_a_member_that_redirects_a_gateway_is_refused(
    create_app: CreateApp, serve: Serve, path: str, param: str
) -> None:
    upstream = ScriptedUpstream("hi")
    client = await serve(create_app(upstream)[0])
    response = await client.post(path, json={**BODY, **REDIRECTING[param]})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", param)
    assert error["message"] == f"A request must not have the member {param}."
    assert upstream.requests == []


async def test_a_body_that_an_app_passes_on_is_checked_as_well(create_app: CreateApp) -> None:
    upstream = ScriptedUpstream("hi")
    app, ai = create_app(upstream)
    async with app.test_request_context("/", method="POST"):
        for ask in (ai.start, ai.complete):
            with pytest.raises(InvalidRequest, match="api_base"):
                await ask({**BODY, "api_base": "http://evil.example"}, principal=Principal("ann"))
    assert upstream.requests == []


async def test_members_that_redirect_nothing_pass(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream("hi")
    client = await serve(create_app(upstream)[0])
    body = {**BODY, "provider": {"only": ["a"]}, "extra_body": {"google": {}}, "n": 1, "user": "u", "api_key": None}
    body["metadata"] = {"chat": "c1", "tenant_id": "acme"}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert upstream.requests == [body]


async def test_members_are_denied_and_allowed_by_name(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream("hi")
    options = {"allowed_members": ["user", "seed", "api_key"], "denied_members": "seed, user"}
    client = await serve(create_app(upstream, **options)[0])
    usual = {"stream": True, "stream_options": {"include_usage": True}}
    statuses = {
        name: (await client.post("/v1/chat/completions", json={**BODY, **usual, name: value})).status_code
        for name, value in {"user": "u", "seed": 1, "api_key": "sk", "api_base": "http://x", "n": 1, "x": 1}.items()
    }
    assert statuses == {"user": 400, "seed": 400, "api_key": 200, "api_base": 400, "n": 400, "x": 400}
    assert (await client.post("/v1/streams", json={**BODY, "thread": "t"})).status_code == 201  # no member of the chat


async def test_an_asterisk_allows_all_members_that_are_not_denied(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream("hi")
    client = await serve(create_app(upstream, allowed_members="*, fallbacks", denied_members=["n"])[0])
    statuses = {
        name: (await client.post(PATHS[0], json={**BODY, name: value})).status_code
        for name, value in {"user": "u", "fallbacks": ["other"], "api_base": "http://x", "n": 1}.items()
    }
    assert statuses == {"user": 200, "fallbacks": 200, "api_base": 400, "n": 400}


async def test_prepare_may_add_what_a_caller_may_not_send(create_app: CreateApp, serve: Serve) -> None:
    upstream = ScriptedUpstream("hi")
    app, ai = create_app(upstream, allowed_members=["metadata"])

    @ai.prepare
    async def add(body, principal):
        body.setdefault("extra_headers", {})["X-Tenant"] = "acme"
        body["user"] = principal.id

    own = {"extra_headers": {"X-Tenant": "acme"}, "user": "ann"}
    client = await serve(app)
    assert (await client.post(PATHS[0], json=BODY)).status_code == 200
    streamed = await client.post(PATHS[1], json={**BODY, "user": "bob"}, headers={"Accept": "text/event-stream"})
    assert streamed.status_code == 200
    async with app.test_request_context("/", method="POST"):
        await ai.complete(BODY, principal=Principal("ann"))
        started = await ai.start(BODY, principal=Principal("ann"))
        async with started.events() as events:
            assert [each async for each in events]
        for ask in (ai.start, ai.complete):
            with pytest.raises(InvalidRequest, match="extra_headers"):
                await ask({**BODY, "extra_headers": {"A": "evil"}}, principal=Principal("ann"))
    assert [{name: request.get(name) for name in own} for request in upstream.requests] == [own] * 4
    for path in PATHS:
        refused = await client.post(path, json={**BODY, "extra_headers": {"Authorization": "Bearer mine"}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "extra_headers")


async def test_prepare_can_remove_a_member_and_cannot_bring_a_denied_one_upstream(
    create_app: CreateApp, serve: Serve
) -> None:
    upstream = ScriptedUpstream("hi")
    app, ai = create_app(upstream, denied_members=["user"])

    @ai.prepare
    async def tidy(body, principal):
        body.pop("user", None)
        return {**body, **body.pop("merge", {})}

    client = await serve(app)
    assert (await client.post(PATHS[0], json={**BODY, "user": "u"})).status_code == 200
    assert "user" not in upstream.requests[0]
    refused = await client.post(PATHS[0], json={**BODY, "merge": {"api_base": "http://evil.example"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "api_base")
    assert len(upstream.requests) == 1


async def test_a_model_of_the_app_never_sees_a_denied_member_and_may_send_its_own(
    create_app: CreateApp, serve: Serve
) -> None:
    upstream = ScriptedUpstream("hi")
    app, ai = create_app(upstream)

    @ai.model("support")
    async def support(chat):
        async for each in chat.call("scripted", chat.messages, api_base="http://127.0.0.1:9"):
            yield each

    client = await serve(app)
    refused = await client.post(PATHS[0], json={**BODY, "model": "support", "api_base": "http://evil.example"})
    assert refused.status_code == 400
    assert (await client.post(PATHS[0], json={**BODY, "model": "support"})).status_code == 200
    assert [request["api_base"] for request in upstream.requests] == ["http://127.0.0.1:9"]


async def test_the_name_of_a_refused_member_is_short_and_printable(create_app: CreateApp, serve: Serve) -> None:
    client = await serve(create_app(ScriptedUpstream(), allowed_members=[])[0])
    for name in ("x" * 5000, "a\nb", "\ud800"):
        content = json.dumps({**BODY, name: 1})
        response = await client.post(PATHS[0], content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        error = response.json()["error"]
        assert len(error["param"]) < 120
        assert error["param"].isprintable()
