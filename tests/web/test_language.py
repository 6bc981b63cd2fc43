"""The translations of the sentences for users."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quart_openai_sse import errors
from quart_openai_sse.errors import OpenAISSEError
from quart_openai_sse.testing import ScriptedUpstream, chunk, read, refused
from quart_openai_sse.web.language import merged, shipped
from tests.conftest import ANN, QUESTION, CreateApp, Serve

BODY = {"model": "scripted", "messages": QUESTION, "stream": True}
CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OpenAISSEError)]
BY_STATUS = re.findall(r'self\.user_message = "([^"]+)"', Path(errors.__file__).read_text("utf-8"))
SENTENCES = {each.user_message for each in CLASSES} | set(BY_STATUS)


def test_the_tests_know_the_sentences() -> None:
    assert len(BY_STATUS) == 2
    assert "Please log in." in SENTENCES


@pytest.mark.parametrize("language", shipped())
def test_every_sentence_is_in_every_catalogue_and_nothing_else(language: str) -> None:
    assert shipped()[language].keys() == SENTENCES
    assert all(text and text != sentence for sentence, text in shipped()[language].items())


def test_there_is_chinese() -> None:
    assert shipped()["zh"]["Please log in."] == "请先登录。"


def test_an_apps_translations_replace_the_shipped_ones() -> None:
    added = merged({"zh": {"Please log in.": "登录！"}, "de": {"Please log in.": "Bitte melde dich an."}})
    assert added["de"] == {"Please log in.": "Bitte melde dich an."}
    assert (added["zh"]["Please log in."], len(added["zh"])) == ("登录！", len(SENTENCES))
    assert shipped()["zh"]["Please log in."] == "请先登录。"


PREFERENCES = {
    "none": ("", "Please log in."),
    "Chinese": ("zh", "请先登录。"),
    "Chinese of China": ("zh-CN,zh;q=0.9,en;q=0.8", "请先登录。"),
    "English first": ("en-GB,zh;q=0.5", "Please log in."),
    "a language nobody has": ("fr", "Please log in."),
    "a language the app has": ("de-AT", "Bitte melde dich an."),
    "nonsense": (";;q=x,\u00e9", "Please log in."),
}


@pytest.mark.parametrize(("accepted", "expected"), PREFERENCES.values(), ids=PREFERENCES)
async def test_an_error_is_told_in_the_language_that_is_asked_for(
    create_app: CreateApp, serve: Serve, accepted: str, expected: str
) -> None:
    app, _ = create_app(ScriptedUpstream(), translations={"de": {"Please log in.": "Bitte melde dich an."}})
    client = await serve(app, headers={})
    response = await client.get("/v1/models", headers={"Accept-Language": accepted.encode("latin-1")})
    assert (response.status_code, response.json()["error"]["user_message"]) == (401, expected)
    assert "Accept-Language" in response.headers["Vary"]
    assert response.json()["error"]["message"] == "No valid credentials were sent."


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/streams?format=text"])
async def test_the_failed_end_of_a_stream_is_told_in_it_too(create_app: CreateApp, serve: Serve, path: str) -> None:
    app, _ = create_app(ScriptedUpstream([chunk("one"), refused(429)]))
    client = await serve(app)
    headers = {**ANN, "Accept": "text/event-stream", "Accept-Language": "zh-CN"}
    stream = await read((await client.post(path, json=BODY, headers=headers)).content)
    assert stream.error["user_message"] == "AI 服务繁忙，请稍后再试。"


async def test_two_apps_may_tell_it_differently(create_app: CreateApp, serve: Serve) -> None:
    told = []
    for text in ("Salut.", "Bonjour."):
        app, _ = create_app(ScriptedUpstream(), translations={"fr": {"Please log in.": text}})
        client = await serve(app, headers={"Accept-Language": "fr"})
        told.append((await client.get("/v1/models")).json()["error"]["user_message"])
    assert told == ["Salut.", "Bonjour."]
