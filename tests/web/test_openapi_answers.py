"""Every response to a request that schemathesis generates is one that the OpenAPI document allows.

`.ci/long openapi` tries for longer than CI does.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quart import Quart

from quart_openai_sse import QuartOpenAISSE, bearer_tokens
from quart_openai_sse.testing import ScriptedUpstream, Step, chunk, error, refused, serve_app
from quart_openai_sse.web.openapi import openapi_document
from tests.conftest import ANN, QUESTION, TOKENS

# The app's thread draws random numbers while hypothesis generates a request, and hypothesis would warn about it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

DOCUMENT = openapi_document()
OPERATIONS = [(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods]
LONG = "OPENAPI_EXAMPLES" in os.environ
bounded = settings(
    max_examples=int(os.environ.get("OPENAPI_EXAMPLES", "25")),
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@functools.cache
def schema() -> Any:
    """The document as schemathesis reads it. Imported here: it takes seconds in every worker of pytest."""
    import schemathesis

    read = schemathesis.openapi.from_dict(DOCUMENT)
    read.config.phases.coverage.enabled = LONG
    return read


def cases(path: str, method: str) -> st.SearchStrategy[Any]:
    """Requests of one operation, valid and invalid by the document."""
    from schemathesis.generation import GenerationMode

    return st.one_of([schema()[path][method].as_strategy(mode) for mode in GenerationMode])


def error_is_listed(_context: Any, response: Any, case: Any) -> None:
    """An error has a code that the document lists for this operation and status."""
    if response.status_code >= 400 and case.method == case.operation.method.upper():
        answered = case.operation.definition.raw["responses"][str(response.status_code)]
        assert response.json()["error"]["code"] in answered["x-codes"]


def conformance() -> list[Callable[..., Any]]:
    """The checks that every response passes."""
    from schemathesis.specs.openapi import checks

    return [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]


def strict() -> list[Callable[..., Any]]:
    """The checks that every response passes while the upstream works."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    return [
        *conformance(),
        not_a_server_error,
        checks.negative_data_rejection,
        checks.ignored_auth,
        checks.unsupported_method,
        error_is_listed,
    ]


WAYS: list[list[Step]] = [
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
"""The ways in which an upstream fails."""


@pytest.fixture(scope="module")
def serve_in_thread() -> Iterator[Callable[[ScriptedUpstream], str]]:
    """Serves an app with a given upstream, and returns its address."""
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
    """The address of an app whose upstream fails in another way each time."""
    return serve_in_thread(ScriptedUpstream(*WAYS * 1000))


def test_it_is_an_openapi_document() -> None:
    schema().validate()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_one_that_the_document_allows(path: str, method: str, sound: str) -> None:
    @bounded
    @given(cases(path, method))
    def try_out(case: Any) -> None:
        check(case, sound)

    try_out()


def check(case: Any, address: str) -> None:
    """Sends the request, and checks the response."""
    if re.fullmatch("[0-9a-f]{32}", str(case.path_parameters.get("stream_id"))):
        case.path_parameters["stream_id"] = one_that_is_there(address)
    response = case.call(base_url=address, headers=ANN)
    case.validate_response(response, checks=strict(), headers=ANN)


if LONG:  # hundreds of requests for each operation, which schemathesis' own plugin makes

    @schema().parametrize()
    @bounded
    def test_every_case_has_an_answer_that_the_document_allows(case: Any, sound: str) -> None:
        check(case, sound)


@pytest.mark.parametrize("path", ["/chat/completions", "/streams"])
def test_so_is_every_answer_when_the_upstream_is_broken(path: str, broken: str) -> None:
    def answered(case: Any, accept: str) -> int:
        response = case.call(base_url=broken, headers={**ANN, "Accept": accept})
        case.validate_response(response, checks=conformance(), headers=ANN)
        return int(response.status_code)

    @bounded
    @given(cases(path, "POST"), st.sampled_from(["", "text/event-stream"]))
    def try_out(case: Any, accept: str) -> None:
        answered(case, accept)

    try_out()
    # How many of those reach the upstream is left to chance, so each of its ways is met once more.
    valid = schema()[path]["POST"].Case(body={"messages": QUESTION}, media_type="application/json")
    assert {answered(valid, "text/event-stream") for _ in WAYS} >= {400, 429, 500, 502, 503}


def one_that_is_there(address: str) -> str:
    response = httpx.post(f"{address}/streams", json={"messages": QUESTION}, headers=ANN)
    return str(response.json()["id"])
