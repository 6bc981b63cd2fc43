"""How `python -m tests.proxies` compares, what it reads of docs/how-to/deploy.md, and nginx, which CI has."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from quart_openai_sse.config import Config
from tests.matrix.page import PAGE, read_page
from tests.proxies.checks import check
from tests.proxies.report import COLUMNS, differences, table
from tests.proxies.ways import KEPT, PROGRAMS, Way, ways

WAYS = list(ways())
in_the_repository = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of this copy")


def test_what_is_as_expected_is_no_difference() -> None:
    assert differences("nginx", KEPT, KEPT) == []


def test_each_column_that_differs_is_a_line() -> None:
    seen = replace(KEPT, events="held", killed="complete")
    assert differences("nginx", seen, KEPT) == [
        "nginx: events: held, expected: at once",
        "nginx: killed: complete, expected: incomplete",
    ]


def test_the_table_has_a_line_for_each_way() -> None:
    head, *lines = table({"nginx": KEPT, "haproxy": replace(KEPT, down="503")})
    assert head.split() == list(COLUMNS)
    assert [line.split()[0] for line in lines] == ["nginx", "haproxy"]
    assert lines[1].endswith("503")
    assert {line.index("201") for line in lines} == {head.index("same_origin")}


def test_each_proxy_keeps_host_in_one_way_and_changes_it_in_another() -> None:
    kept = {(way.program, not way.host) for way in WAYS}
    assert kept == {(program, keeps) for program in PROGRAMS for keeps in (True, False)}
    assert {way.expected.origin_only for way in WAYS if way.host} == {"403, says why"}
    assert len({str(way) for way in WAYS}) == len(WAYS)


@in_the_repository
class TestThePage:
    """The configurations of docs/how-to/deploy.md."""

    def test_each_of_them_is_run(self) -> None:
        page = read_page(PAGE.read_text("utf-8"))
        run = {way.settings(page) for way in WAYS}
        assert {page.nginx[""], *page.proxies.values()} <= run

    def test_they_wait_for_an_answer_in_one_piece(self) -> None:
        page = read_page(PAGE.read_text("utf-8"))
        limits = {"HAProxy": r"timeout server (\d+)s", "Apache": r"timeout=(\d+)"}
        for proxy, limit in limits.items():
            [seconds] = re.findall(limit, page.proxies[proxy])
            assert int(seconds) > Config.total_timeout


@in_the_repository
@pytest.mark.parametrize("way", [way for way in WAYS if way.program == "nginx"], ids=str)
async def test_nginx_is_as_expected(nginx: str, way: Way, tmp_path: Path) -> None:
    seen = await check(way, read_page(PAGE.read_text("utf-8")), tmp_path)
    assert differences(str(way), seen, way.expected) == []
