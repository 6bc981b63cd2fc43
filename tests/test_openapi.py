"""The document of the routes is what the code does: lists that are whole, and requests that schemathesis makes up.

`OPENAPI_EXAMPLES=2000 pytest tests/test_openapi.py --timeout=0` tries for longer than CI does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from quart import Quart
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

import quart_openai_sse
from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.blueprint import ROUTES
from quart_openai_sse.cli import main
from quart_openai_sse.errors import (
    ConfigurationError,
    InvalidRequest,
    MethodNotAllowed,
    OpenAISSEError,
    RouteNotFound,
    UpstreamRefused,
)
from quart_openai_sse.openapi import openapi_document, subclasses
from quart_openai_sse.requests import validate
from quart_openai_sse.testing import ScriptedUpstream, Step, chunk, error, refused, serve_app
from tests.conftest import ANN, QUESTION, TOKENS
from tests.test_requests import _bodies

# The app, in its own thread, draws numbers while a request is made up; hypothesis takes that for the request's doing.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

DOCUMENT = openapi_document()
OPERATIONS = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
ASKING = [operation for operation in OPERATIONS if "5XX" in operation["responses"]]
"""What asks an upstream."""
CODES = {each.get("const"): each["description"] for each in DOCUMENT["components"]["schemas"]["ErrorCode"]["anyOf"]}
ERRORS = [
    cls
    for cls in subclasses(OpenAISSEError)
    if cls.__module__ == "quart_openai_sse.errors" and cls is not ConfigurationError
]
SAID_IN_WORDS = {RouteNotFound, MethodNotAllowed}
"""What meets those who ask for none of the operations."""


# What it lists ------------------------------------------------------------------------------------------------------


def test_it_is_an_openapi_document() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_every_route_is_in_it() -> None:
    listed = {(method, path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert listed == {
        (method.lower(), re.sub("<(.*)>", r"{\1}", path)) for group in ROUTES.values() for method, path, _ in group
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
    used = {code for path in package.glob("*.py") for code in re.findall(r', code="(\w+)"\)', path.read_text("utf-8"))}
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
    # A model's letters must be printable, and 1.0 is an integer to JSON Schema.
    undocumented = refusal is not None and (refusal.param == "model" or "integer" in refusal.message)
    assert said is (refusal is None) or undocumented


CHAT_REQUEST = Draft202012Validator({"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]})


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


# What is answered ---------------------------------------------------------------------------------------------------

schema = schemathesis.openapi.from_dict(DOCUMENT)
LONG = "OPENAPI_EXAMPLES" in os.environ
schema.config.phases.coverage.enabled = LONG  # hundreds of requests for each operation
bounded = settings(
    max_examples=int(os.environ.get("OPENAPI_EXAMPLES", "25")),
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def error_is_listed(_context: Any, response: Any, case: Any) -> None:
    """An error says a code that the document has for this operation and status."""
    if response.status_code >= 400 and case.method == case.operation.method.upper():
        answered = case.operation.definition.raw["responses"][str(response.status_code)]
        assert response.json()["error"]["code"] in answered["x-codes"]


CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
STRICT = [
    not_a_server_error,
    checks.negative_data_rejection,
    checks.ignored_auth,
    checks.unsupported_method,
    error_is_listed,
]


@pytest.fixture(scope="module")
def serve_in_thread() -> Iterator[Callable[[ScriptedUpstream], str]]:
    """Serves an app with the upstream it is given, and says where."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def serve(upstream: ScriptedUpstream) -> str:
            app = Quart("openapi")
            options = {"base_url": "http://127.0.0.1:9/v1", "model": "scripted", "retries": 0}
            QuartOpenAISSE(app, auth=bearer_tokens(TOKENS), upstream=lambda _: upstream, **options)
            return f"http://{stack.enter_context(portal.wrap_async_context_manager(serve_app(app)))}/v1"

        yield serve


@pytest.fixture(scope="module")
def sound(serve_in_thread: Callable[[ScriptedUpstream], str]) -> str:
    return serve_in_thread(ScriptedUpstream("Hello there."))


@pytest.fixture(scope="module")
def broken(serve_in_thread: Callable[[ScriptedUpstream], str]) -> str:
    """An app whose upstream breaks in another way each time."""
    ways: list[list[Step]] = [
        [chunk("hi")],
        [chunk("hi"), error("no")],
        [error("no", code=5)],
        [b"<html>"],
        [b"data: nonsense\n\n"],
        [refused(400, "no", code="odd")],
        [refused(429, "no", retry_after=3)],
        [refused(401)],
        [refused(503)],
        [chunk("hi"), OSError("gone")],
        [OSError("gone")],
    ]
    return serve_in_thread(ScriptedUpstream(*ways * 1000))


@schema.parametrize()
@bounded
def test_every_answer_is_one_that_the_document_allows(case: Any, sound: str) -> None:
    if re.fullmatch("[0-9a-f]{32}", str(case.path_parameters.get("stream_id"))):
        case.path_parameters["stream_id"] = one_that_is_there(sound)
    response = case.call(base_url=sound, headers=ANN)
    case.validate_response(response, checks=[*CONFORMANCE, *STRICT], headers=ANN)


@pytest.mark.parametrize("path", ["/chat/completions", "/streams"])
def test_so_is_every_answer_when_the_upstream_is_broken(path: str, broken: str) -> None:
    seen = set()

    @bounded
    @given(schema[path]["POST"].as_strategy(), st.sampled_from(["", "text/event-stream"]))
    def try_out(case: Any, accept: str) -> None:
        response = case.call(base_url=broken, headers={**ANN, "Accept": accept})
        case.validate_response(response, checks=CONFORMANCE, headers=ANN)
        seen.add(response.status_code)

    try_out()
    assert seen & {500, 502, 503}


def one_that_is_there(address: str) -> str:
    response = httpx.post(f"{address}/streams", json={"messages": QUESTION}, headers=ANN)
    return str(response.json()["id"])
