"""What is read from the exceptions of libraries, and what is not taken for the status of a response."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from quart import abort
from werkzeug.exceptions import HTTPException

from quart_openai_sse.producers.exception_members import body_of, headers_of, retry_after_of, status_of
from tests.producers.foreign_exceptions import LIBRARIES, of, refusal_of, response


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_the_status_of_each_library(library: str, status: int) -> None:
    assert status_of(refusal_of(library, status)) == status


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_retry_after_of_each_library(library: str) -> None:
    assert retry_after_of(refusal_of(library, 429)) == 7


def raised_by_abort() -> HTTPException:
    with pytest.raises(HTTPException) as raised:
        abort(429)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        of("OrderError", code=404),
        of("OrderError", status=500),
        of("OperationFailure PyMongoError", code=429),
        of("IntegrityError DatabaseError StatementError", code="gkpj"),
        of("OrderError", status_code="429"),
        of("OrderError", status_code=True),
        of("OrderError", status_code=200),
        of("OrderError", status_code=42),
        of("OrderError", status_code=600),
        of("ResponseError", status_code=-1),
        of("APIResponseValidationError APIError", status_code=200, response=response(200)),
        of("HTTPException", status_code=429, detail="no"),
        of("TransferEncodingError BadHttpMessage HttpProcessingError", code=400),
        of("OrderError", response=SimpleNamespace(status_code=None, status="429")),
        raised_by_abort(),
        SystemExit(429),
        ValueError("status_code=429"),
    ],
    ids=repr,
)
def test_other_numbers_are_no_status(error: BaseException) -> None:
    assert status_of(error) is None


def test_a_status_of_an_enum_is_a_number() -> None:
    status = status_of(of("APIError", code=HTTPStatus.TOO_MANY_REQUESTS))
    assert (status, type(status)) == (429, int)


@pytest.mark.parametrize(("name", "status"), [("RESOURCE_EXHAUSTED", 429), ("UNAVAILABLE", 503), ("OK", None)])
def test_a_code_of_grpc_is_a_status(name: str, status: int | None) -> None:
    error = of("AioRpcError RpcError", code=lambda: SimpleNamespace(name=name))
    assert status_of(error) == status


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "soon", True, None])
def test_a_retry_after_that_is_no_number_is_none(value: Any) -> None:
    assert retry_after_of(of("RateLimitError", status_code=429, retry_after=value)) is None


def test_a_retry_after_beyond_a_float_is_a_year() -> None:
    assert retry_after_of(of("RateLimitError", status_code=429, retry_after=10**400)) == 365 * 86400


def test_the_date_of_a_retry_after_is_read_too() -> None:
    error = of("RateLimitError", response=response(429, {"RETRY-AFTER": "Sun, 06 Nov 1994 08:49:37 GMT"}))
    assert retry_after_of(error) == 0


def test_headers_that_are_no_mapping_are_none() -> None:
    assert headers_of(of("APIError", headers=[("a", "b")], response=response(429, {"A": "b"}))) == {"a": "b"}
    assert headers_of(of("APIError", headers=["a"], response=SimpleNamespace(headers=5))) == {}


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (of("APIError", body={"message": "no"}), {"message": "no"}),
        (of("APIError", body=b'{"message": "no"}'), {"message": "no"}),
        (of("APIError", body="Bad gateway at 10.0.0.1"), None),
        (of("APIError", details={"message": "<html>Bad gateway at 10.0.0.1"}), None),
        (of("ResponseError", error="no"), "no"),
        (of("ResponseError", error=" <html>"), None),
        (of("HTTPError", response=response(400, content=b'{"error": "no"}')), {"error": "no"}),
        (of("HTTPError", response=response(400, content=False)), None),  # requests has not read it
        (of("HTTPError", response=response(400, content=b"\xff{")), None),
        (of("ClientError", response={"Error": "no"}), None),
        (of("OrderError", error="no"), None),
    ],
    ids=repr,
)
def test_the_body_is_what_the_library_has_decoded_or_read(error: BaseException, body: Any) -> None:
    assert body_of(error) == body


def test_a_response_that_is_not_read_yet_is_not_read_now() -> None:
    class Unread:
        status_code = 500

        @property
        def content(self) -> bytes:
            pytest.fail("This waits for the network.")

        text = body = json = content

    assert body_of(of("HTTPError", response=Unread())) is None


class Hostile(Exception):
    """An exception of which no attribute but its class can be read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Hostile
        raise RuntimeError(f"no {name}")


def test_an_attribute_that_raises_does_not_exist() -> None:
    error = Hostile()
    assert (status_of(error), headers_of(error), retry_after_of(error), body_of(error)) == (None, {}, None, None)
    odd = of("APIError", status_code=429, response=Hostile(), headers=Hostile(), body=Hostile())
    assert (status_of(odd), headers_of(odd), retry_after_of(odd), body_of(odd)) == (429, {}, None, None)
