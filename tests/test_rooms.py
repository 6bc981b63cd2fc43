"""The count of the rooms: on packages that are written for it, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rooms import FLOORS, PACKAGE, circles, main, points_upwards, read_package


def write_package(checkout: Path, files: dict[str, str]) -> Path:
    """A checkout whose package has *files*."""
    for path, text in {"__init__.py": "", **files}.items():
        file = checkout / PACKAGE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return checkout


IN_ORDER = {
    "__init__.py": f"from {PACKAGE}.web.views import view\n",
    "errors.py": "",
    "web/__init__.py": "",
    "web/views.py": f"""
from typing import TYPE_CHECKING
import asyncio, quart
from {PACKAGE}.errors import Refused
from {PACKAGE}.web.bodies import read_body
from {PACKAGE}.protocol import json
if TYPE_CHECKING:
    from {PACKAGE}.relay.relay import Relay
""",
    "web/bodies.py": f"""
def read_body():
    from {PACKAGE}.logs import StreamLog, Writer
    import {PACKAGE}.protocol.json
""",
    "web/client.js": "",
    "static/page.js": "",
    "relay/__init__.py": "",
    "relay/relay.py": f"from {PACKAGE}.logs import StreamLog\n",
    "logs/__init__.py": "",
    "protocol/__init__.py": "",
    "protocol/json.py": "",
}

UPWARDS = {
    "logs/__init__.py": "",
    "logs/memory.py": f"from {PACKAGE}.relay.relay import Relay, start\n",
    "relay/relay.py": f"from {PACKAGE}.testing import read\n",
    "testing/__init__.py": "",
}

CIRCLE_OF_ROOMS = {
    "web/views.py": f"from {PACKAGE}.auth.hooks import authenticate\n",
    "auth/hooks.py": f"def hook():\n    from {PACKAGE}.flask.sessions import share\n",
    "flask/sessions.py": f"from {PACKAGE}.web.bodies import read_body\n",
    "web/bodies.py": "",
}

CIRCLE_OF_FILES = {
    "logs/kept.py": f"from {PACKAGE}.logs.memory import Memory\n",
    "logs/memory.py": f"from {PACKAGE}.logs.mirror.lease import Lease\n",
    "logs/mirror/lease.py": f"from {PACKAGE}.logs.memory import Memory\n",
}


def test_an_import_is_counted_wherever_it_is_written_and_an_arrow_once(tmp_path: Path) -> None:
    package = read_package(write_package(tmp_path, IN_ORDER))
    assert package.arrows == {
        "__init__": {"web"},
        "errors": set(),
        "logs": set(),
        "protocol": set(),
        "relay": {"logs"},
        "web": {"errors", "logs", "protocol", "relay"},
    }
    assert [str(each) for each in package.imports] == [
        "__init__.py -> web/views.py (view)",
        "relay/relay.py -> logs/__init__.py (StreamLog)",
        "web/bodies.py -> logs/__init__.py (StreamLog, Writer)",
        f"web/bodies.py -> protocol/json.py ({PACKAGE}.protocol.json)",
        "web/views.py -> errors.py (Refused)",
        "web/views.py -> protocol/json.py (json)",
        "web/views.py -> relay/relay.py (Relay)",
        "web/views.py -> web/bodies.py (read_body)",
    ]


def test_levels_are_counted_from_the_bottom(tmp_path: Path) -> None:
    levels = read_package(write_package(tmp_path, IN_ORDER)).levels
    assert levels == {"errors": 1, "logs": 1, "protocol": 1, "relay": 2, "web": 3, "__init__": 4}


def test_the_places_of_a_circle_are_on_one_level(tmp_path: Path) -> None:
    levels = read_package(
        write_package(tmp_path, {**CIRCLE_OF_ROOMS, "relay.py": f"import {PACKAGE}.auth.hooks"})
    ).levels
    assert levels == {"__init__": 1, "auth": 1, "flask": 1, "web": 1, "relay": 2}


def test_neither_the_public_names_nor_what_all_share_is_an_arrow_between_rooms(tmp_path: Path) -> None:
    package = read_package(write_package(tmp_path, IN_ORDER))
    assert sorted(package.between_rooms()) == [
        ("relay", "logs"),
        ("web", "logs"),
        ("web", "protocol"),
        ("web", "relay"),
    ]


@pytest.mark.parametrize(
    ("place", "imported", "upwards"),
    [
        ("web", "relay", False),
        ("web", "auth", False),
        ("auth", "web", False),
        ("relay", "web", True),
        ("logs", "protocol", False),
        ("protocol", "logs", True),
        ("protocol", "transport", False),
        ("transport", "protocol", True),
        ("transport", "errors", False),
        ("errors", "transport", True),
        ("config", "errors", False),
        ("testing", "extension", False),
        ("testing", "simulator", False),
        ("cli", "simulator", False),
        ("pytest_plugin", "testing", False),
        ("pytest_plugin", "simulator", True),
        ("web", "simulator", True),
        ("__init__", "testing", True),
        ("attic", "web", False),
        ("web", "attic", False),
    ],
)
def test_the_floors_say_what_points_upwards(place: str, imported: str, upwards: bool) -> None:
    assert points_upwards(place, imported) is upwards


def test_circles_are_the_groups_that_lead_back() -> None:
    graph = {"a": "b", "b": "ac", "c": "de", "d": "e", "e": "f", "f": "d", "g": "a"}
    assert circles(graph) == [["a", "b"], ["d", "e", "f"]]


COUNT_OF_IN_ORDER = """\
places                             6
levels                             4
arrows                             6
arrows between rooms               4
arrows that point upwards          0
circles between places             0
circles between files of a room    0

          level  files  lines  imports
the Quart shell:
__init__      4      1      1  web
web           3      3     12  errors, logs, protocol, relay
the engine:
relay         2      2      1  logs
the interfaces:
logs          1      1      0  -
the rules:
protocol      1      2      0  -
shared by all:
errors        1      1      0  -
"""


def test_a_package_in_order_is_printed_with_a_line_for_each_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--package", str(write_package(tmp_path, IN_ORDER))]) == 0
    assert capsys.readouterr().out == COUNT_OF_IN_ORDER


def test_an_import_upwards_is_listed_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--package", str(write_package(tmp_path, UPWARDS) / PACKAGE)]) == 1
    assert capsys.readouterr().out.endswith("""

logs -> relay points upwards:
  logs/memory.py -> relay/relay.py (Relay, start)
relay -> testing points upwards:
  relay/relay.py -> testing/__init__.py (read)
""")


def test_a_circle_of_rooms_is_listed_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--package", str(write_package(tmp_path, CIRCLE_OF_ROOMS))]) == 1
    assert capsys.readouterr().out.endswith("""

auth, flask, web import each other:
  auth/hooks.py -> flask/sessions.py (share)
  flask/sessions.py -> web/bodies.py (read_body)
  web/views.py -> auth/hooks.py (authenticate)
""")


def test_a_circle_within_a_room_is_listed_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--package", str(write_package(tmp_path, CIRCLE_OF_FILES))]) == 1
    assert capsys.readouterr().out.endswith("""

logs/memory.py, logs/mirror/lease.py import each other:
  logs/memory.py -> logs/mirror/lease.py (Lease)
  logs/mirror/lease.py -> logs/memory.py (Memory)
""")


def test_places_on_no_floor_and_long_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"attic/boxes.py": "\n" * 301, "web/views.py": "\n" * 300}
    assert main(["--package", str(write_package(tmp_path, files))]) == 0
    printed = capsys.readouterr().out
    assert "\nplaces on no floor, so not judged: 1\n" in printed
    assert "\non no floor:\nattic         1      1    301  -\n" in printed
    assert printed.endswith("\n\nfiles of more than 300 lines:\n  attic/boxes.py 301\n")


def test_this_package_is_counted_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {f"{floor}:" for floor in FLOORS} < set(printed)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "There is no package in"),
        (
            {f"{PACKAGE}/__init__.py": "", f"{PACKAGE}/web.py": "\nfrom . import relay\n"},
            "web.py, line 2: a relative import",
        ),
    ],
    ids=["no package", "a relative import"],
)
def test_what_cannot_be_counted_is_said_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], message: str
) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, "utf-8")
    assert main(["--package", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
