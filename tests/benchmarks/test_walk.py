"""The walk of a request: it is the same on every run, and it is that of the package as it lies there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.benchmarks.walk import EVENTS, FURTHER, PACKAGE, Counts, Function, Walk, further, listing, summary, walks
from tests.matrix.environments import ROOT, Failed

RELAY, LOG, READER = Function("relay.py", "run"), Function("logs/memory.py", "append"), Function("logs/kept.py", "read")


def test_a_request_runs_what_is_there_and_the_command_counts_the_same() -> None:
    stream, longer = walks(EVENTS, EVENTS + FURTHER)
    more, event = further(stream, longer, FURTHER)

    assert {each.room for each in stream.calls} <= {path.stem for path in PACKAGE.iterdir()}
    assert all((PACKAGE / each.file).is_file() for each in stream.calls)
    assert {each.room for each in stream.calls}.isdisjoint({"simulator", "testing", "loopback"})
    assert more.keys() < stream.calls.keys()
    assert 0 < event.functions < stream.counts().functions
    assert 0 < event.changes < stream.changes

    # Another process has another order of sets, other loggers, and another clock.
    command = [sys.executable, "-m", "tests.benchmarks.walk", "--list"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    title, _, printed = done.stdout.partition("\n")
    assert title.startswith("One plain streamed request")
    assert printed == summary(stream.counts(), event) + "\n" + listing(stream.calls, more)


def test_a_request_passes_no_more_functions_and_rooms_than_were_agreed() -> None:
    one, longer = walks(1, 1 + FURTHER)
    _, event = further(one, longer, FURTHER)
    assert one.counts().functions <= 195
    assert one.changes <= 101
    assert event.changes <= 9


def test_the_stream_can_have_another_length() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.walk", "--events", "1"], cwd=ROOT, capture_output=True, text=True
    )
    [one, longer] = walks(1, 1 + FURTHER)
    assert done.stdout.partition("\n")[2] == summary(one.counts(), further(one, longer, FURTHER)[1], events=1)
    assert "per stream of 1 event " in done.stdout


def test_a_room_is_a_folder_or_a_module_and_changes_between_two_calls() -> None:
    assert [each.room for each in (RELAY, LOG, READER)] == ["relay", "logs", "logs"]
    walk = Walk([RELAY, LOG, READER, LOG, RELAY, RELAY])
    assert walk.counts() == Counts(functions=3, calls=6, files=3, rooms=2, changes=2)


def test_a_further_event_is_the_difference_for_each() -> None:
    short, long = [RELAY, LOG], [RELAY, *[READER, RELAY, RELAY] * 2, LOG]
    more, counts = further(Walk(short), Walk(long), 2)
    assert more == {READER: 1, RELAY: 2}
    assert counts == Counts(functions=2, calls=3, files=2, rooms=2, changes=2)


@pytest.mark.parametrize(
    "longer",
    [[RELAY, LOG, LOG, RELAY], [RELAY], [RELAY, RELAY, RELAY, LOG, LOG, RELAY, RELAY]],
    ids=["half a call", "a call less", "half a change"],
)
def test_what_is_no_whole_number_is_refused(longer: list[Function]) -> None:
    with pytest.raises(Failed, match="2 further events"):
        further(Walk([RELAY, LOG]), Walk(longer), 2)
