"""How the matrix judges and reads; `python -m tests.matrix` itself is run by .ci/run."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from quart_openai_sse.config import Config
from tests.matrix.environments import CLIENTS as CLIENTS_FOLDER
from tests.matrix.environments import PINS, SERVER_PACKAGES, Failed, quart_pin
from tests.matrix.judge import Outcomes, judge, table
from tests.matrix.page import PAGE, read_page
from tests.matrix.plan import CHECKS, CLIENTS, QUARTS, SERVERS, WITHOUT_CLIENT, Environment, Known, rows
from tests.matrix.run import Run

ENVIRONMENT = Environment("3.13", "0.23")
UVICORN, GRANIAN = rows(ENVIRONMENT, ("uvicorn", "granian"), quick=True)


def outcomes(*problems: str) -> Outcomes:
    """Curl against uvicorn: a check for each problem, or "" for none."""
    found = Outcomes()
    checks = list(CHECKS)[: len(problems)]
    found.expect(UVICORN, "curl", checks)
    for check, problem in zip(checks, problems, strict=True):
        found.note(UVICORN, "curl", check, problem)
    return found


def test_what_passes_is_counted() -> None:
    verdict = judge(outcomes("", ""), known=())
    assert verdict.cells == {(UVICORN, "curl"): "2/2"}
    assert verdict.line == "2 passed, 0 failed"


def test_what_fails_is_counted_and_has_a_footnote() -> None:
    verdict = judge(outcomes("", "it hung"), known=())
    assert verdict.cells == {(UVICORN, "curl"): "1/2 (a)"}
    assert verdict.notes == {"a": "live: it hung"}
    assert verdict.line == "1 passed, 1 failed"


def test_equal_problems_share_a_footnote() -> None:
    found = outcomes("broken")
    found.expect(GRANIAN, "curl", ["text"])
    found.note(GRANIAN, "curl", "text", "broken")
    assert list(judge(found, known=()).cells.values()) == ["0/1 (a)", "0/1 (a)"]


def test_a_known_reason_is_a_footnote_and_no_failure() -> None:
    verdict = judge(outcomes("", "it hung"), known=[Known("live", "a bug of curl", client="curl")])
    assert verdict.cells == {(UVICORN, "curl"): "1/2 (a)"}
    assert verdict.notes == {"a": "live: known: a bug of curl"}
    assert verdict.line == "1 passed, 0 failed"


@pytest.mark.parametrize(
    "about",
    [{"client": "fetch"}, {"server": "granian"}, {"way": "nginx"}, {"check": "stop"}],
    ids=lambda about: next(iter(about)),
)
def test_a_known_reason_covers_nothing_else(about: dict[str, str]) -> None:
    verdict = judge(outcomes("", "it hung"), known=[Known(**{"check": "live", "why": "a bug", **about})])
    assert verdict.line == "1 passed, 1 failed"


def test_a_known_reason_whose_check_passes_is_stale_and_fails() -> None:
    verdict = judge(outcomes("", ""), known=[Known("live", "a bug of curl")])
    assert verdict.line == "2 passed, 1 failed"
    assert "live: stale" in verdict.notes["a"]


def test_a_known_reason_that_was_not_tried_is_not_stale() -> None:
    assert judge(outcomes("", ""), known=[Known("stop", "a bug of curl")]).failed == 0


def test_a_client_that_says_nothing_has_failed() -> None:
    found = outcomes("")
    found.expect(GRANIAN, "curl", ["text", "live"])
    found.note(GRANIAN, "curl", "text", "")
    found.missing([UVICORN, GRANIAN], "curl", "it crashed")
    verdict = judge(found, known=())
    assert (verdict.line, verdict.notes) == ("2 passed, 1 failed", {"a": "live: it crashed"})


def test_a_check_without_an_outcome_has_failed() -> None:
    found = Outcomes()
    found.expect(UVICORN, "curl", ["text"])
    assert judge(found, known=()).notes == {"a": "text: it was not run"}


def test_there_are_footnotes_beyond_z() -> None:
    found = Outcomes()
    found.expect(UVICORN, "curl", [str(number) for number in range(28)])
    assert list(judge(found, known=()).notes)[25:] == ["z", "aa", "ab"]


def test_the_table_has_a_line_for_each_server_and_each_footnote() -> None:
    lines = table(judge(outcomes("", "it hung"), known=()), [UVICORN, GRANIAN], ["curl", "fetch"])
    assert [line.split() for line in lines] == [
        ["curl", "fetch"],
        ["3.13", "0.23", "httpx", "uvicorn", "direct", "1/2", "(a)"],
        ["3.13", "0.23", "httpx", "granian", "direct"],
        ["(a)", "live:", "it", "hung"],
    ]


def test_an_impossible_environment_says_why() -> None:
    assert Environment("3.12", "0.23").impossible == "Quart 0.23 needs Python 3.13"
    assert [Environment("3.13", quart).impossible for quart in QUARTS] == ["", ""]


async def test_a_run_without_a_possible_environment_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.matrix.run.QUARTS", {"0.23": (3, 13)})
    run = Run(Namespace(quick=True, newest=False, python=None, server=None, client=["curl"], cache=tmp_path), tmp_path)
    run._pythons = {"3.11": sys.executable}
    with pytest.raises(Failed, match=r"Quart 0\.23 needs Python 3\.13"):
        await run.run()


def test_a_quick_run_has_a_row_for_each_server_and_a_full_one_seven() -> None:
    assert [len(rows(ENVIRONMENT, tuple(SERVERS), quick=quick)) for quick in (True, False)] == [5, 35]


def test_every_client_makes_a_check_or_says_why_not() -> None:
    alone = {check for checks in WITHOUT_CLIENT.values() for check in checks}
    for client in CLIENTS:
        assert {*client.checks, *(check for check, _ in client.without), *alone} == set(CHECKS)


def test_the_pin_of_a_series_is_found_whatever_python_it_is_for() -> None:
    pins = 'httpx==0.28.1\nQuart==0.22.0; python_version < "3.13"\n'
    assert quart_pin(pins, "0.22") == "quart==0.22.0"
    with pytest.raises(Failed):
        quart_pin(pins, "0.23")


@pytest.mark.skipif(not PINS.exists(), reason="the pins are not part of this copy")
def test_everything_is_pinned_by_version_and_no_address() -> None:
    pinned = re.findall(r"^([\w-]+)==", PINS.read_text("utf-8").lower(), re.M)
    assert set(SERVER_PACKAGES) <= set(pinned)
    for name in {client.requirements for client in CLIENTS if client.requirements}:
        text = (CLIENTS_FOLDER / name).read_text("utf-8")
        assert "://" not in text
        if name.endswith(".txt"):
            assert (
                re.findall(r"^\w.*", text, re.M)
                == re.findall(r"^\S+==\S+ .*\\(?=\n    --hash=sha256:)", text, re.M)
                != []
            )
        else:
            assert text.count('"node_modules/') == text.count('"integrity"') > 0


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of this copy")
class TestThePage:
    """What the matrix reads of docs/how-to/deploy.md."""

    def test_it_has_a_command_for_every_server(self) -> None:
        page = read_page(PAGE.read_text("utf-8"))
        assert {name.removesuffix(" at /ai") for name in page.servers} == set(SERVERS)
        assert {"", *SERVERS.values()} == set(page.nginx)

    def test_every_server_can_be_started_below_a_path(self) -> None:
        page = read_page(PAGE.read_text("utf-8"))
        by_script = {name for name, command in page.servers.items() if "serve" in command}
        assert "/ai" in page.script("serve.py", 5000, below=True)
        assert all(f"{name} at /ai" in page.servers for name in set(SERVERS) - by_script)

    def test_granian_takes_more_requests_at_a_time_than_there_may_be_streams(self) -> None:
        page = read_page(PAGE.read_text("utf-8"))
        commands = [command for name, command in page.servers.items() if name.startswith("granian")]
        taken = [int(number) for command in commands for number in re.findall(r"--backpressure (\d+) ", command)]
        assert len(taken) == len(commands) == 2
        assert min(taken) > 2 * Config.max_streams

    def test_a_command_is_for_any_port(self) -> None:
        page = read_page("<!-- run: server uvicorn -->\n```sh\nuvicorn --port 5000 app:app\n```\n")
        assert page.command("uvicorn", 1234) == ["uvicorn", "--port", "1234", "app:app"]

    def test_a_line_is_put_before_the_server_runs(self) -> None:
        page = read_page(
            "<!-- run: script serve.py -->\n```python\nif True:\n    await serve(app)\n```\n"
            "<!-- run: line of serve.py -->\n```python\nx = 1\n```\n"
        )
        assert page.script("serve.py", 1, below=True) == "if True:\n    x = 1\n    await serve(app)\n"
        assert page.script("serve.py", 1, below=False) == "if True:\n    await serve(app)\n"
