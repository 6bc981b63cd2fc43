"""The OpenAPI document lists every route and error, and the limits of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from jsonschema_rs import Draft202012Validator

import quart_openai_sse
from quart_openai_sse.cli import main
from quart_openai_sse.errors import (
    ConfigurationError,
    InvalidRequest,
    MethodNotAllowed,
    NestedTooDeep,
    OpenAISSEError,
    RouteNotFound,
    UpstreamRefused,
)
from quart_openai_sse.protocol.members import RANGES
from quart_openai_sse.protocol.requests import check_idempotency_key, check_thread, validate
from quart_openai_sse.web.blueprint import ROUTES
from quart_openai_sse.web.openapi import openapi_document
from quart_openai_sse.web.openapi_operations import subclasses
from tests.conftest import QUESTION
from tests.protocol.test_requests import _bodies

# The app's thread draws random numbers while hypothesis generates a request, and hypothesis would warn about it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

DOCUMENT = openapi_document()
OPERATIONS = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
ASKING = [operation for operation in OPERATIONS if "5XX" in operation["responses"]]
"""The operations that send a request upstream."""
CODES = {each.get("const"): each["description"] for each in DOCUMENT["components"]["schemas"]["ErrorCode"]["anyOf"]}
ERRORS = [
    cls
    for cls in subclasses(OpenAISSEError)
    if cls.__module__ == "quart_openai_sse.errors" and cls not in (ConfigurationError, NestedTooDeep)
]
"""The errors of the routes: not one of the setup, and not one that only a request of the app's own can have."""
SAID_IN_WORDS = {RouteNotFound, MethodNotAllowed}
"""The errors of requests for none of the operations."""


# What it lists ------------------------------------------------------------------------------------------------------


def test_every_route_is_in_it() -> None:
    listed = {(method, path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert listed == {
        (method.lower(), re.sub("<(?:path:)?(.*)>", r"{\1}", path))
        for group in ROUTES.values()
        for method, path, _ in group
    }
    assert [operation["operationId"] for operation in OPERATIONS if not operation["summary"]] == []


def test_groups_and_prefix_are_chosen() -> None:
    document = openapi_document(url_prefix="/api/ai", routes={"health"})
    assert list(document["paths"]) == ["/health", "/ready"]
    assert document["servers"] == [{"url": "/api/ai"}]
    with pytest.raises(ValueError, match="Unknown routes: chats"):
        openapi_document(routes={"chats"})


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_is_in_it_with_its_status_code_and_headers(cls: type[OpenAISSEError]) -> None:
    assert CODES[cls.code]
    if cls in SAID_IN_WORDS:
        assert f"{cls.status} (`{cls.code}`)" in DOCUMENT["info"]["description"]
        return
    answered = [found for each in OPERATIONS if (found := each["responses"].get(str(cls.status)))]
    saying = [response for response in answered if cls.code in response.get("x-codes", ())]
    if issubclass(cls, UpstreamRefused):  # its status is the upstream's
        saying = [each["responses"][status] for each in ASKING for status in ("4XX", "5XX")]
    assert saying
    for response in saying:
        assert cls.retry_after is None or "Retry-After" in response["headers"]
        assert cls.should_retry is None or "x-should-retry" in response["headers"]


def test_codes_of_single_instances_are_in_it_too() -> None:
    package = Path(quart_openai_sse.__file__).parent
    files = [path for path in package.rglob("*.py") if "simulator" not in path.parts]
    used = {code for path in files for code in re.findall(r', code="(\w+)"\)', path.read_text("utf-8"))}
    assert used >= {"invalid_json"}
    assert used <= CODES.keys()


@settings(deadline=None, max_examples=300)
@given(_bodies)
@example({"messages": QUESTION, "model": "m", "n": 0})
@example({"messages": QUESTION, "model": "m", "stream_options": {"include_usage": 1}})
def test_a_body_is_refused_if_and_only_if_it_is_not_what_the_document_says(body: Any) -> None:
    said = CHAT_REQUEST.is_valid(body)
    try:
        validate(body if isinstance(body, dict) else {})
    except InvalidRequest as raised:
        refusal: InvalidRequest | None = raised
    else:
        refusal = None
    # The letters of a model and of a role must be printable, and 1.0 is an integer to JSON Schema.
    undocumented = refusal is not None and ("printable" in refusal.message or "integer" in refusal.message)
    assert said is (refusal is None) or undocumented


@pytest.mark.parametrize("name", RANGES)
def test_the_ranges_of_openai_are_said_in_words(name: str) -> None:
    member = DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"][name]
    assert member["description"].startswith("In front of OpenAI's own API only: ")
    limits = [str(RANGES[name][limit]) for limit in ("minimum", "maximum") if limit in RANGES[name]]
    assert all(limit in member["description"] for limit in limits)
    assert not {"minimum", "maximum"} & member.keys()


CHAT_REQUEST = Draft202012Validator({"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]})


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "!", "~", " ", "a b", "a\n", "\0", "\x7f", "\x85", "\xa0", "ü", "a" * 255, "a" * 256),
        *("\u061c", "\u200d", "\u200e", "\u2028", "\u202e", "\u202f", "\u2066", "\u2069", "👩‍🚀"),
    ],
    ids=ascii,
)
def test_a_thread_and_a_key_are_refused_if_and_only_if_they_are_not_what_the_document_says(text: str) -> None:
    components = DOCUMENT["components"]
    thread = Draft202012Validator(components["schemas"]["StreamRequest"]["properties"]["thread"])
    assert thread.is_valid(text) is passes(check_thread, text)
    key = Draft202012Validator(components["parameters"]["Idempotency-Key"]["schema"])
    assert key.is_valid(text) is (text == "" or passes(check_idempotency_key, text))


def passes(check: Callable[[str], str], text: str) -> bool:
    try:
        return check(text) == text
    except InvalidRequest:
        return False


def test_an_app_may_change_its_document_and_changes_nothing_else_by_it() -> None:
    document = openapi_document()
    document["components"]["schemas"]["ChatRequest"]["properties"]["n"]["maximum"] = 1
    document["paths"]["/chat/completions"]["post"]["requestBody"]["required"] = False
    assert openapi_document() == DOCUMENT
    assert validate({"messages": QUESTION, "model": "m", "n": 2})


def test_the_formats_of_an_app_are_added_to_a_document() -> None:
    document = openapi_document(formats={"lines": "application/x-ndjson; charset=utf-8", "html": "text/event-stream"})
    assert document["components"]["parameters"]["format"]["schema"]["enum"] == ["html", "lines", "openai", "text"]
    reading, starting = document["paths"]["/streams/{stream_id}"]["get"], document["paths"]["/streams"]["post"]
    events = DOCUMENT["paths"]["/streams/{stream_id}"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    own = {"text/event-stream": events, "application/x-ndjson": {"schema": {"type": "string"}}}
    assert reading["responses"]["200"]["content"] == own
    assert own.items() <= starting["responses"]["200"]["content"].items()
    assert openapi_document() == DOCUMENT


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["openapi", "--url-prefix", "/api", "--routes", "chat,models"])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out) == openapi_document(url_prefix="/api", routes={"chat", "models"})


def test_the_command_knows_its_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["openapi", "--routes", "chat,modles"])
    assert done.value.code == 2
    assert "there is no group modles" in capsys.readouterr().err
