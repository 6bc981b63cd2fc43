"""Trace ids: where they come from, and the log records they are put on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator

import pytest

from quart_openai_sse.protocol.trace_context import (
    TraceIdFilter,
    current_trace_id,
    reset_trace_id,
    set_trace_id,
    trace_id_from,
)
from quart_openai_sse.web.middleware import add_trace_ids

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent",
    [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-more"],
    ids=["version 00", "not sampled", "a later version", "a later version with more members"],
)
def test_a_valid_traceparent_gives_the_id(traceparent: str) -> None:
    assert trace_id_from(traceparent, "mine") == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"01-{TRACE}-{PARENT}-01more",
        f"00-{TRACE}-{PARENT}-01\n",
        f" 00-{TRACE}-{PARENT}-01",
    ],
)
def test_an_invalid_traceparent_counts_for_nothing(traceparent: str) -> None:
    assert trace_id_from(traceparent, "mine") == "mine"


@pytest.mark.parametrize("trace_id", ["a", "A.b_c-9", "x" * 64, TRACE])
def test_a_sane_x_trace_id_is_taken(trace_id: str) -> None:
    assert trace_id_from("", trace_id) == trace_id


@pytest.mark.parametrize("trace_id", ["", "x" * 65, "a b", "a\nb", "a\n", "ü", '"', "a%0a", "\x1b[31m"])
def test_one_that_could_forge_a_log_line_is_replaced_by_a_new_one(trace_id: str) -> None:
    first, second = trace_id_from("", trace_id), trace_id_from("", trace_id)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_there_is_none_outside_a_request() -> None:
    assert current_trace_id() == ""


async def test_every_task_has_its_own() -> None:
    async def answer(trace_id: str) -> str:
        token = set_trace_id(trace_id)
        await asyncio.sleep(0)
        seen = current_trace_id()
        reset_trace_id(token)
        assert current_trace_id() == ""
        return seen

    assert await asyncio.gather(answer("a"), answer("b")) == ["a", "b"]


# Log records --------------------------------------------------------------------------------------------------------


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.INFO, __file__, 1, "message", None, None)
    made.__dict__.update(extra)
    return made


def test_the_filter_puts_the_id_on_a_record_and_lets_it_pass() -> None:
    token = set_trace_id("t")
    try:
        made = record()
        assert TraceIdFilter().filter(made) is True
        assert made.__dict__["trace_id"] == "t"
    finally:
        reset_trace_id(token)
    without = record()
    assert TraceIdFilter().filter(without)
    assert without.__dict__["trace_id"] == ""


def test_a_record_keeps_the_id_it_has_wherever_it_is_handled() -> None:
    token = set_trace_id("t")
    made = record()
    TraceIdFilter().filter(made)
    reset_trace_id(token)
    TraceIdFilter().filter(made)
    assert made.__dict__["trace_id"] == "t"


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(trace_id)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


OURS = ["quart_openai_sse", "quart_openai_sse.stream", "quart_openai_sse.response"]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler of the root's, and every filter and level as it was afterwards."""
    handler = Kept()
    root = logging.getLogger()
    root.addHandler(handler)
    places: list[logging.Filterer] = [*map(logging.getLogger, OURS), *root.handlers]
    before = [(place, list(place.filters)) for place in places]
    yield handler
    root.removeHandler(handler)
    for place, filters in before:
        place.filters[:] = filters


def test_the_filter_is_installed_once_where_a_requests_records_pass(kept: Kept) -> None:
    app_logger = logging.Logger("app")
    for _ in range(2):
        add_trace_ids(app_logger)
    places: list[logging.Filterer] = [app_logger, kept, *map(logging.getLogger, OURS)]
    assert [sum(isinstance(each, TraceIdFilter) for each in place.filters) for place in places] == [1] * len(places)


def test_any_librarys_record_has_the_id_at_the_roots_handlers(kept: Kept) -> None:
    add_trace_ids(logging.Logger("app"))
    token = set_trace_id("t")
    logging.getLogger("some.library").warning("one")
    reset_trace_id(token)
    logging.getLogger("some.library").warning("two")
    assert kept.lines == ["t one", " two"]
