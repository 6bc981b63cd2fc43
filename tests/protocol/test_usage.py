"""The usage that upstreams report, in all places and in any number of reports."""

from __future__ import annotations

from typing import Any

import pytest

from quart_openai_sse.protocol.usage import find_usage, update_usage

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}

PLACES: dict[str, tuple[Any, Any]] = {
    "top level": ({"usage": USAGE}, USAGE),
    "x_groq": ({"x_groq": {"id": "r", "usage": USAGE}}, USAGE),
    "a choice": ({"choices": [{"index": 0}, {"index": 1, "usage": USAGE}]}, USAGE),
    "empty at the top, and in a choice": ({"usage": {}, "choices": [{"usage": USAGE}]}, USAGE),
    "nowhere": ({"usage": None, "choices": [None, {"usage": None}], "x_groq": {"id": "r"}}, None),
    "odd types": ({"usage": [1], "choices": "x", "x_groq": 5}, None),
}


@pytest.mark.parametrize(("chunk", "usage"), PLACES.values(), ids=PLACES)
def test_usage_is_found_wherever_it_stands(chunk: Any, usage: Any) -> None:
    assert find_usage(chunk) == usage


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
DETAILED = {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}}

REPORTS: dict[str, tuple[list[Any], Any]] = {
    "one": ([USAGE], USAGE),
    "repeated": ([USAGE, USAGE], USAGE),
    "cumulative": ([{**USAGE, "completion_tokens": 1, "total_tokens": 6}, USAGE], USAGE),
    "zeros last": ([USAGE, ZEROS], USAGE),
    "zeros first": ([ZEROS, USAGE], USAGE),
    "zeros alone": ([ZEROS], ZEROS),
    "without a total": ([{"prompt_tokens": 5, "completion_tokens": 7}], USAGE),
    "cumulative without a total": (
        [{"prompt_tokens": 5, "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 7}],
        USAGE,
    ),
    "in two parts": ([{"prompt_tokens": 5}, {"completion_tokens": 7}], USAGE),
    "of another API": (
        [{"input_tokens": 5, "output_tokens": 7}],
        {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
    ),
    "details that come once": ([DETAILED, {**USAGE, "prompt_tokens_details": None}], DETAILED),
    "details that are zeros later": ([DETAILED, {**USAGE, "prompt_tokens_details": {"cached_tokens": 0}}], DETAILED),
    "counts that are no numbers": ([{"prompt_tokens": "5", "completion_tokens": True}], None),
}


@pytest.mark.parametrize(("reports", "usage"), REPORTS.values(), ids=REPORTS)
def test_the_last_report_counts_and_zeros_take_nothing_back(reports: list[Any], usage: Any) -> None:
    known = None
    for report in reports:
        known = update_usage(known, report)
    assert known == (reports[0] if usage is None else usage)
