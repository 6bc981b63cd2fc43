"""The shapes of errors: the sentence, the status and the wait are found in each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.protocol import json
from quart_openai_sse.protocol.error_shapes import read_report

WHY = "Unknown name x"
QUOTED = json.encode({"error": {"message": WHY}}).decode()

SENTENCES: dict[str, tuple[Any, str]] = {
    "OpenAI's": ({"error": {"message": WHY}}, WHY),
    "the error itself": ({"message": WHY}, WHY),
    "a string": (WHY, WHY),
    "a string beside a type": ({"error": WHY, "error_type": "validation"}, WHY),
    "an array": ([{"error": {"code": 400, "message": WHY, "status": "INVALID_ARGUMENT"}}], WHY),
    "several errors": ([{"error": {"message": "one"}}, {"error": {"message": "two"}}], "one; two"),
    "errors": ({"success": False, "errors": [{"code": 7003, "message": WHY}], "messages": []}, WHY),
    "errors that are strings": ({"errors": ["one", "two"]}, "one; two"),
    "detail": ({"detail": WHY}, WHY),
    "details of FastAPI": ({"detail": [{"loc": ["x"], "msg": "one"}, {"loc": ["y"]}, {"msg": "two"}, 5]}, "one; two"),
    "an error in detail": ({"detail": {"error": {"message": WHY}}}, WHY),
    "detail in message": ({"object": "error", "message": {"detail": [{"loc": ["x"], "msg": WHY}]}}, WHY),
    "a list of messages": ({"statusCode": 400, "message": ["one", "two"], "error": "No"}, "No: one; two"),
    "msg": ({"code": 1301, "msg": WHY}, WHY),
    "error_msg": ({"error_code": 336003, "error_msg": WHY}, WHY),
    "Message": ({"Message": WHY}, WHY),
    "errorMessage": ({"errorMessage": WHY, "errorType": "X"}, WHY),
    "description": ({"error": {"description": WHY}}, WHY),
    "base_resp": ({"choices": None, "base_resp": {"status_code": 2013, "status_msg": WHY}}, WHY),
    "problem+json": (
        {"type": "https://errors.example/x", "title": "Bad Request", "status": 400, "detail": WHY},
        f"Bad Request: {WHY}",
    ),
    "a provider's JSON in metadata.raw": (
        {"error": {"message": "Provider returned error", "metadata": {"raw": QUOTED}}},
        f"Provider returned error: {WHY}",
    ),
    "a provider's text in metadata.raw": (
        {"error": {"message": "Provider returned error", "metadata": {"raw": WHY, "provider_name": "P"}}},
        f"Provider returned error: {WHY}",
    ),
    "JSON in the message": ({"error": {"message": QUOTED}}, WHY),
    "JSON without a sentence in the message": ({"error": {"message": '{"x": "y"}'}}, '{"x": "y"}'),
    "empty JSON in the message": ({"error": "No", "message": "{}"}, "No"),
    "Databricks' own and a provider's": (
        {"error": "Received error from acme", "external_model_message": {"error_code": "X", "message": WHY}},
        f"Received error from acme: {WHY}",
    ),
    "a sentence that is said twice": ({"message": WHY, "error": {"message": WHY}}, WHY),
    "the name of the status beside it": ({"error": "Bad Request.", "message": WHY}, f"{WHY}: Bad Request."),
    "nothing": ({"error": {"code": 5}}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("error", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_is_found_in_every_shape(error: Any, sentence: str) -> None:
    assert read_report(error).sentence == sentence


STATUSES: dict[str, tuple[Any, int | None]] = {
    "a number": ({"code": 429}, 429),
    "a text": ({"code": "429"}, 429),
    "status": ({"status": 503}, 503),
    "status_code": ({"error": "x", "status_code": 422}, 422),
    "http_status_code": ({"error": {"message": "x", "http_status_code": 422}}, 422),
    "statusCode": ({"message": "x", "statusCode": 404}, 404),
    "the inner one": ({"code": 500, "error": {"code": 400}}, 400),
    "not a provider's before the gateway's": ({"code": 502, "metadata": {"raw": '{"error": {"code": 429}}'}}, 502),
    "a number of its own": ({"code": 7}, None),
    "true": ({"code": True}, None),
    "MiniMax's number for an empty account": ({"status_code": 1008, "status_msg": "x"}, 402),
    "the same number of others": ({"code": 1008, "msg": "x"}, None),
}


@pytest.mark.parametrize(("error", "status"), STATUSES.values(), ids=STATUSES)
def test_the_status_is_read_where_an_error_names_one(error: Any, status: int | None) -> None:
    assert read_report(error).status == status


WAITS: dict[str, tuple[Any, float | None]] = {
    "Google's": ({"details": [{"@type": "QuotaFailure"}, {"@type": "RetryInfo", "retryDelay": "37s"}]}, 37),
    "fractions": ({"details": [{"retryDelay": "2.5s"}]}, 2.5),
    "metadata": ({"metadata": {"retry_after_seconds": 12}}, 12),
    "retry_after": ({"retry_after": 0.5}, 0.5),
    "words": ({"message": "Rate limit reached. Please try again in 1.2s. Visit the page."}, 1.2),
    "milliseconds": ({"message": "Please try again in 240ms."}, 0.24),
    "minutes and seconds": ({"message": "Please try again in 7m12.5s."}, 432.5),
    "hours": ({"message": "try again in 1h2m."}, 3720),
    "Azure's words": ({"message": "Please retry after 26 seconds."}, 26),
    "minutes in words": ({"message": "Try again in 2 minutes."}, 120),
    "the member before the words": ({"retry_after": 3, "message": "Please try again in 9s."}, 3),
    "no unit": ({"message": "Please try again in 5."}, None),
    "no number": ({"message": "Please try again in a moment."}, None),
    "a negative one": ({"retry_after": -1}, None),
    "an invalid delay": ({"details": [{"retryDelay": "soon"}, {"retryDelay": 5}, 7]}, None),
}


@pytest.mark.parametrize(("error", "seconds"), WAITS.values(), ids=WAITS)
def test_the_wait_that_an_error_asks_for_is_read(error: Any, seconds: float | None) -> None:
    assert read_report(error).retry_after == seconds


def test_what_the_caller_has_said_is_passed_on() -> None:
    flagged = {"reasons": ["violence"], "flagged_input": "x"}
    report = read_report(
        {"error": {"failed_generation": "{}", "metadata": {**flagged, "provider_name": "P"}, "code": "c"}}
    )
    assert report.passed_on == {"failed_generation": "{}", "metadata": flagged}
    assert report.flagged
    azure = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}
    assert read_report({"error": {"innererror": azure}}).passed_on == {"innererror": azure}


def test_the_text_none_is_none() -> None:
    report = read_report({"error": {"message": WHY, "type": "None", "param": "None", "code": "429"}})
    assert (report.type, report.param, report.code) == ("", "", "429")


@pytest.mark.parametrize("code", [[1004], {"x": 1004}, "1004", 1e300, None, True])
def test_a_base_resp_whose_code_is_no_number_has_no_status(code: Any) -> None:
    report = read_report({"base_resp": {"status_code": code, "status_msg": WHY}})
    assert (report.sentence, report.status) == (WHY, None)


_NAMES = ["error", "errors", "detail", "details", "message", "metadata", "raw", "code", "status", "retryDelay"]
_NAMES += ["base_resp", "status_code", "status_msg", "reason", "type", "content_filter_result", "failed_generation"]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just('{"error":["x"]}'),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner),
)


@given(_json)
def test_any_json_value_can_be_read(error: Any) -> None:
    report = read_report(error)
    assert report.status is None or 400 <= report.status < 600
    assert report.retry_after is None or report.retry_after >= 0
