"""How figures are read and summed up, and that the command measures; no figure is judged."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import layers, measure
from tests.benchmarks.measure import Sample, Spread, above, instructions_of, ratios, session_of, spreads
from tests.benchmarks.modes import MODES, figures_of, modes, runs
from tests.benchmarks.report import compared, divided, plot, tables
from tests.benchmarks.servers import QUICK, SERVERS, chosen
from tests.machine import need_go_and_gin
from tests.matrix.environments import ROOT
from tests.rooms import PACKAGE, installed, read_package

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

LAYERED = (
    "formats/",
    "logs/",
    "producers/",
    "protocol/",
    "transport/",
    "upstreams/",
    "web/middleware.py",
    "web/event_stream.py",
)
"""What the way of an event leads through."""

(LOCKSTEP,) = modes(["lockstep"], seconds=1)
GROUPS = {each.name: each.group for each in SERVERS}


def sample(server: str, number: int, **figures: float) -> Sample:
    return Sample(server, "lockstep", number, figures)


ROUNDS = [
    sample("gin", 1, cpu=10),
    sample("ours-uvicorn", 1, cpu=20),
    sample("gin", 2, cpu=100),
    sample("ours-uvicorn", 2, cpu=100),
    sample("gin", 3, cpu=30),
    sample("ours-uvicorn", 3, cpu=45),
]


class TestSpreads:
    """Medians and ratios over rounds."""

    def test_it_is_the_median_the_lowest_and_the_highest(self) -> None:
        assert spreads(ROUNDS, "lockstep", "cpu") == {"gin": Spread(30, 10, 100), "ours-uvicorn": Spread(45, 20, 100)}

    def test_a_ratio_is_taken_within_a_round(self) -> None:
        found = ratios(ROUNDS, "lockstep", "cpu", against="gin")
        assert found == {"gin": Spread(1, 1, 1), "ours-uvicorn": Spread(1.5, 1, 2)}

    def test_a_round_without_the_other_has_no_ratio(self) -> None:
        found = ratios([*ROUNDS, sample("ours-uvicorn", 4, cpu=1000)], "lockstep", "cpu", against="gin")
        assert found["ours-uvicorn"] == Spread(1.5, 1, 2)
        assert ratios(ROUNDS, "lockstep", "cpu", against="nginx") == {}

    def test_other_modes_and_figures_are_left_out(self) -> None:
        assert spreads(ROUNDS, "short", "cpu") == spreads(ROUNDS, "lockstep", "rss") == {}


def test_what_is_above_another_server_is_taken_within_a_round() -> None:
    samples = [
        sample("bare", 1, rss=20),
        sample("ours", 1, rss=50),
        sample("bare", 2, rss=30),
        sample("ours", 2, rss=31),
    ]
    found = above([*samples, sample("ours", 3, rss=9)], "rss", {"ours": "bare"})
    assert spreads(found, "lockstep", "rss_above_bare") == {"ours": Spread(15.5, 1, 30)}
    assert spreads(found, "lockstep", "rss") == spreads([*samples, sample("ours", 3, rss=9)], "lockstep", "rss")


class TestAccounting:
    """What the machine says of processes."""

    def test_a_process_name_may_hold_anything(self) -> None:
        assert session_of("12 (a) b (c) S 1 12 77 0 -1") == 77

    def test_a_session_is_found_with_all_its_processes(self) -> None:
        command = (sys.executable, "-c", "import subprocess as s, sys; s.run([sys.executable, '-c', 'input()'])")
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as leader:
            while len(found := measure.session(leader.pid)) < 2:
                assert leader.poll() is None
            leader.communicate(b"\n")
        assert leader.pid in found
        assert measure.session(leader.pid) == []

    def test_cpu_time_is_that_of_the_process(self) -> None:
        before = measure.cpu_seconds([os.getpid()])
        sum(range(1_000_000))
        used = measure.cpu_seconds([os.getpid()]) - before
        assert used > 0
        assert measure.cpu_seconds([os.getpid(), os.getpid()]) > before * 2

    def test_memory_is_in_kilobytes(self) -> None:
        status = Path("/proc/self/status").read_text("utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert 1000 < measure.resident_kilobytes([os.getpid()]) <= int(line.split()[1]) + 1024

    @pytest.mark.parametrize(
        ("report", "count"),
        [
            ("123456,,instructions,1000,100.00,,\n", 123456),
            ("123456,,instructions:u,1000,100.00,,\n", 123456),
            ("<not supported>,,instructions,0,100.00,,\n", None),
            ("<not counted>,,instructions,0,0.00,,\n", None),
            ("", None),
        ],
        ids=["counted", "of user space", "not supported", "not counted", "nothing"],
    )
    def test_instructions_are_counted_or_not(self, report: str, count: int | None) -> None:
        assert instructions_of(report) == count


class TestFigures:
    """What is computed of an outcome."""

    TIMES = {"seconds": 2.0, "p50": 7.0, "p99": 9.0, "first": 11.0, "released": 3.0}
    OUTCOME = {"events": 1000, "streams": 50, "unfinished": 0, "refused": 0, **TIMES}

    def test_cost_is_for_an_event(self) -> None:
        found = figures_of(LOCKSTEP, self.OUTCOME, {"cpu": 0.5, "instructions": 60e6})
        assert (found["cpu"], found["instructions"], found["rate"], found["p99"]) == (500, 60, 500, 9)

    def test_in_short_streams_cost_is_for_a_stream(self) -> None:
        (short,) = modes(["short"], seconds=1)
        found = figures_of(short, self.OUTCOME, {"cpu": 0.5})
        assert (found["cpu"], found["rate"]) == (10_000, 25)

    def test_memory_is_for_a_stream_that_is_open(self) -> None:
        first, *_ = modes(["paced"], seconds=1)
        assert figures_of(first, self.OUTCOME, {"cpu": 0.5, "rss": 3000})["rss"] == 30
        assert "rss" not in figures_of(first, {**self.OUTCOME, "unfinished": 1}, {"cpu": 0.5, "rss": 3000})
        assert "rss" not in figures_of(first, {**self.OUTCOME, "refused": 1}, {"cpu": 0.5, "rss": 3000})

    def test_streams_that_were_never_given_up_upstream_have_no_time(self) -> None:
        (vanish,) = modes(["vanish"], seconds=1)
        assert figures_of(vanish, self.OUTCOME, {}) == {"first": 11, "released": 3}
        assert figures_of(vanish, {**self.OUTCOME, "released": -1}, {}) == {"first": 11}

    def test_many_streams_have_a_server_of_their_own(self) -> None:
        names = [[mode.name for mode in each] for each in runs(modes(list(MODES), seconds=1))]
        assert names == [
            ["lockstep", "bulk-1", "bulk-20", "short"],
            ["paced-100"],
            ["paced-500"],
            ["paced-1000"],
            ["vanish"],
        ]
        assert runs([]) == []

    def test_every_mode_has_a_figure_that_is_compared(self) -> None:
        for mode in modes(list(MODES), seconds=1):
            assert mode.figures[0].name in figures_of(mode, self.OUTCOME, {"cpu": 1.0, "rss": 1.0})


class TestReport:
    """What is printed and drawn."""

    def test_the_table_has_figures_and_ratios(self) -> None:
        lines = tables(ROUNDS, [LOCKSTEP], GROUPS, {}, ["3 rounds"]).splitlines()
        assert [line.split() for line in lines[3:6]] == [
            ["CPU", "µs/event", "of", "gin"],
            ["gin", "30.0", "1.00", "(1.00-1.00)"],
            ["ours-uvicorn", "45.0", "1.50", "(1.00-2.00)"],
        ]

    def test_what_is_missing_or_lost_is_said(self) -> None:
        lost = Sample("gin", "lockstep", 4, {}, ["3 of 4 events came"])
        text = tables([*ROUNDS, lost], [LOCKSTEP], GROUPS, {"nginx": "it is not found"}, [])
        assert "nginx: it is not found" in text
        assert "round 4, gin, lockstep: 3 of 4 events came" in text

    def test_instructions_are_compared_where_they_are_counted(self) -> None:
        assert compared(ROUNDS, LOCKSTEP).name == "cpu"
        assert compared([*ROUNDS, sample("gin", 4, cpu=1, instructions=5)], LOCKSTEP).name == "instructions"

    def test_features_stand_beside_what_they_are_taken_from(self) -> None:
        feature = sample("ours-uvicorn+no-auth", 1, cpu=15)
        others, features = divided([*ROUNDS, feature], LOCKSTEP, GROUPS)
        assert others == ROUNDS
        assert {each.server for each in features} == {"ours-uvicorn", "ours-uvicorn+no-auth"}
        assert divided(ROUNDS, LOCKSTEP, GROUPS)[1] == []

    def test_the_plot_has_a_bar_for_each_server_with_the_best_first(self) -> None:
        drawn = ElementTree.fromstring(plot(ROUNDS, [LOCKSTEP], GROUPS))
        texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[2:] == [
            LOCKSTEP.title,
            "CPU µs/event, less is better",
            "gin",
            "30.0",
            "ours-uvicorn",
            "45.0 · 1.50 \xd7 gin",
        ]


class TestServers:
    """The table of servers."""

    def test_names_are_unique_and_the_quick_ones_are_there(self) -> None:
        names = [each.name for each in SERVERS]
        assert len(set(names)) == len(names)
        assert [each.name for each in chosen(list(QUICK))] == sorted(QUICK, key=names.index)

    def test_a_group_is_all_of_it_and_an_unknown_name_is_refused(self) -> None:
        assert {each.group for each in chosen(["ours"])} == {"ours"}
        with pytest.raises(KeyError, match="mine"):
            chosen(["ours", "mine"])


@pytest.mark.timeout(300)  # Go compiles Gin first
@pytest.mark.slow
def test_a_tiny_run_measures_and_leaves_nothing_running(tmp_path: Path) -> None:
    need_go_and_gin()
    files = [f"--json={tmp_path / 'figures.json'}", f"--plot={tmp_path / 'figures.svg'}", f"--cache={tmp_path}"]
    only = ["--only=gin,ours-hypercorn", "--mode=lockstep", "--rounds=1", "--seconds=0.2"]
    command = [sys.executable, "-m", "tests.benchmarks", *only, *files]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of gin" in done.stdout
    kept = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert {each["server"]: "cpu" in each["figures"] for each in kept["samples"]} == {
        "gin": True,
        "ours-hypercorn": True,
    }
    assert kept["missing"] == {}
    ElementTree.parse(tmp_path / "figures.svg")
    assert [said for said in _processes() if str(tmp_path) in said] == []


def _processes() -> list[str]:
    """The working directory and the command line of each process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text("utf-8", "replace")
            if command:  # otherwise it has given back its memory, and is just ending
                found.append(f"{(folder / 'cwd').readlink()} {command}")
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return found


def test_each_layer_of_ours_is_in_the_package() -> None:
    places = {f"{PACKAGE}/{path}": file for path, file in read_package(installed()).files.items()}
    stale = []
    for part in (part for *_, parts in layers.LAYERS for part in parts if part.startswith(f"{PACKAGE}/")):
        path, _, name = part.partition(":")
        files = [file for place, file in places.items() if place.startswith(path)]
        names = {node.name for file in files for node in ast.walk(file.tree) if isinstance(node, DEFINITIONS)}
        if not files or (name and name not in names):
            stale.append(part)
    assert stale == []


def test_what_is_done_for_an_event_is_not_counted_as_the_engine() -> None:
    files = [path for path in read_package(installed()).files if path.startswith(LAYERED)]
    assert {part for part in LAYERED if not any(path.startswith(part) for path in files)} == set()
    assert [path for path in files if layers.layer_of(f"/x/{PACKAGE}/{path}:function") == "engine"] == []


def test_each_function_is_counted_in_one_layer() -> None:
    counts = [
        ("/x/quart_openai_sse/protocol/sse.py:SSEDecoder.feed_data", 200, 8000),
        ("/x/quart_openai_sse/protocol/sse.py:encode_data", 200, 4000),
        ("/x/quart/asgi.py:ASGIHTTPConnection._send_response", 200, 6000),
        ("/x/quart_openai_sse/relay/relay.py:Relay.start", 1, 1),  # once in a stream
    ]
    table = layers._table(counts, 200, functions=False)  # type: ignore[arg-type]
    rows = {line[:14].strip(): line[14:].split()[:2] for line in table.splitlines()[2:]}
    assert rows == {
        "SSE decoder": ["1.0", "40.0"],
        "format": ["1.0", "20.0"],
        "Quart": ["1.0", "30.0"],
        "all": ["3.0", "90.0"],
    }
