"""What the tables of shared logs compute of their samples; no figure is judged."""

from __future__ import annotations

import pytest

from tests.benchmarks.measure import Sample
from tests.benchmarks.shared.bare import percentiles
from tests.benchmarks.shared.tables import TABLES, extra, printed
from tests.benchmarks.shared.text import chunks


def samples(**cpu: float) -> list[Sample]:
    names = {"plain": "plain", "memory": "app model, memory log", "redis": "app model, Redis log"}
    return [Sample(names[name], "relay", 1, {"cpu": value, "redis": 0.0}) for name, value in cpu.items()]


def test_what_a_log_costs_is_compared_with_a_plain_event_of_the_same_round() -> None:
    found = {each.server: each.figures.get("extra") for each in extra(samples(plain=40, memory=50, redis=56))}
    assert found == {"plain": None, "app model, memory log": None, "app model, Redis log": pytest.approx(0.15)}


def test_a_table_has_its_ratios_and_says_what_was_lost() -> None:
    measured = [*samples(plain=40, memory=50, redis=60), Sample("plain", "relay", 2, {"cpu": 44}, ["2 streams"])]
    lines = printed(TABLES["relay"], measured).splitlines()
    assert [line.split("  ")[1] for line in lines[2:5]] == [
        "plain",
        "app model, memory log",
        "app model, Redis log",
    ]
    assert lines[4].split()[-4:] == ["1.50", "(1.50-1.50)", "0.25", "(0.25-0.25)"]
    assert lines[-1] == "  round 2, plain: 2 streams"


def test_percentiles_are_of_the_values_in_order() -> None:
    assert percentiles(list(map(float, range(100, 0, -1)))) == {"p50": 50.5, "p95": 95.95, "highest": 100}


def test_chunks_differ_in_their_words_only() -> None:
    first, second = chunks(2)
    assert first != second
    assert first[:200] == second[:200]
