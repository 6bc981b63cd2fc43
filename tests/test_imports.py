"""The rooms: imports point down only, in no circle, and the lower floors know no Quart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import quart_openai_sse
from tests.rooms import (
    BESIDE,
    FLOORS,
    PACKAGE,
    SHARED,
    File,
    circular_imports,
    imported_names,
    read_package,
    upward_imports,
)

ROOT = Path(quart_openai_sse.__file__).parent
ROOMS = read_package(ROOT)
FILES = ROOMS.files

OPTIONAL = {
    "a2wsgi",
    "quart_auth",
    "redis",
    "jwt",
    "limits",
    "httpx2",
}
"""Installed by extras: imported by the one module that needs it, or within the function that does."""

UNDECLARED = {"pytest", "_typeshed"}
"""Imported where they are there in any case: pytest loads its plugin, and type checkers bring their stubs."""

PURE = ("protocol/", "formats/", "logs/entries.py", *(f"{name}.py" for name in SHARED))
"""Rules and values: functions here return at once, and depend on their arguments alone."""

MOST = {"places": 24, "levels": 9, "arrows between rooms": 45}
"""More of one of these is a reason to look for the room that something belongs to, or to change the number here."""


def others(file: File, *, only_at_the_top: bool = False) -> set[str]:
    """The foreign packages that *file* imports."""
    names = imported_names(file, only_at_the_top=only_at_the_top)
    return {module.partition(".")[0] for module, _ in names} - {PACKAGE}


def refuse(found: Iterable[object], why: str) -> None:
    """Fails with a line for each that was *found*."""
    if lines := [str(each) for each in found]:
        pytest.fail("\n".join((f"{why}:", *lines)), pytrace=False)


def users(foreign: set[str], files: Iterable[File], *, only_at_the_top: bool = False) -> list[str]:
    """Those of *files* that import one of the *foreign* packages, and which."""
    return [
        f"{file.path} -> {', '.join(sorted(names))}"
        for file in files
        if (names := others(file, only_at_the_top=only_at_the_top) & foreign)
    ]


def pure_files() -> list[File]:
    """Those of `PURE`."""
    return [file for path, file in FILES.items() if path.startswith(PURE)]


# Rooms ------------------------------------------------------------------------------------------------------------


def test_every_room_is_on_one_floor_and_every_name_on_a_floor_is_a_room() -> None:
    named = [*(place for places in FLOORS.values() for place in places), *BESIDE]
    refuse(ROOMS.on_no_floor(), "On no floor of tests/rooms.py")
    refuse(set(named) - ROOMS.places.keys(), "On a floor of tests/rooms.py, but not in the package")
    refuse({name for name in named if named.count(name) > 1}, "On two floors of tests/rooms.py")


def test_imports_are_found() -> None:
    found = [str(each) for each in ROOMS.imports]
    assert "web/stream.py -> web/event_stream.py (last_event_id, resumed_response)" in found
    assert "auth/lookups.py -> protocol/json.py (json)" in found  # from quart_openai_sse.protocol import json
    assert "formats/openai.py -> formats/__init__.py (Reading, SSEFormat)" in found
    assert "pytest_plugin.py -> extension.py (QuartOpenAISSE)" in found  # for type checkers only
    assert "quart" in others(FILES["extension.py"])
    assert "httpx" in others(FILES["upstreams/httpx_client.py"])
    assert "a2wsgi" in others(FILES["flask/mounting.py"])  # within a function


def test_imports_point_down_only() -> None:
    refuse(upward_imports(ROOMS), "A room may import only from its own floor and from those below it")


def test_there_are_no_circles_between_rooms_or_within_one() -> None:
    refuse(circular_imports(ROOMS), "Imports lead back to where they came from")


def test_a_room_is_more_than_one_file() -> None:
    folders = {Path(path).parent.as_posix() for path in FILES} - {"."}
    counts = {
        each: sum(path.startswith(f"{each}/") and _defines(file) for path, file in FILES.items()) for each in folders
    }
    refuse((folder for folder, count in counts.items() if count < 2), "Folders in which one file has all the code")


def _defines(file: File) -> bool:
    """Whether there is anything in it besides a docstring, imports and `__all__`."""
    return any(
        not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in file.tree.body
    )


def test_the_rooms_stay_few_and_so_do_the_arrows_between_them() -> None:
    counts = {
        "places": len(ROOMS.places),
        "levels": max(ROOMS.levels.values()),
        "arrows between rooms": len(ROOMS.between_rooms()),
    }
    more = (f"{count} {name}, not {MOST[name]}" for name, count in counts.items() if count > MOST[name])
    refuse(more, "More than there should be; `python -m tests.rooms` lists them")


# What a room may know ---------------------------------------------------------------------------------------------


def test_nothing_imports_the_extension_but_the_package_itself() -> None:
    found = (each for each in ROOMS.imports if each.imported == "extension.py")
    refuse((each for each in found if each.places[0] not in ("__init__", *BESIDE)), "Imports of the extension")


def test_nothing_of_ours_is_imported_by_way_of_the_package() -> None:
    # `from quart_openai_sse import X` would run the whole package to get at one room.
    refuse((each for each in ROOMS.imports if each.imported == "__init__.py"), "Imports of the list of public names")


def test_the_commands_need_nothing_that_is_shipped_for_tests() -> None:
    tests = {("cli", "testing"), ("cli", "pytest_plugin")}
    refuse((each for each in ROOMS.imports if each.places in tests), "Imports of what is shipped for tests")


def test_below_the_shell_there_is_no_quart() -> None:
    below = [file for file in FILES.values() if file.place not in (*FLOORS["the Quart shell"], *BESIDE)]
    refuse(users({"quart", "werkzeug", "flask", "hypercorn", "jinja2"}, below), "Below the shell, but with Quart")


def test_the_rules_wait_for_nothing_and_look_at_no_clock() -> None:
    assert {part for part in PURE if not any(file.path.startswith(part) for file in pure_files())} == set()
    world = {"asyncio", "time", "datetime", "socket", "threading", "httpx", "quart"}
    refuse(users(world, pure_files()), "Pure by its room, but not by its imports")
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    nodes = ((file.path, node) for file in pure_files() for node in ast.walk(file.tree))
    refuse(
        (f"{path}:{node.lineno}" for path, node in nodes if isinstance(node, waiting)), "Pure by its room, but waits"
    )


# Dependencies -----------------------------------------------------------------------------------------------------


def test_an_optional_dependency_is_the_affair_of_one_room() -> None:
    for name in OPTIONAL:
        having = [file for file in FILES.values() if name in others(file)]
        if len({file.place for file in having}) > 1:
            refuse(users({name}, having), f"{name} is optional, and imported in more than one room")
    always = [FILES[path] for path in FILES["__init__.py"].imports]
    refuse(users(OPTIONAL, always, only_at_the_top=True), "An extra, imported whenever the package is")


def test_the_package_is_imported_without_any_extra() -> None:
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL)!r}))\n"  # None: importing it fails
        f"import {PACKAGE}\n"
        f"print(sorted(name for name in sys.modules if name.startswith('{PACKAGE}.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = {name.removeprefix(f"{PACKAGE}.").partition(".")[0] for name in ast.literal_eval(done.stdout)}
    refuse(loaded & set(BESIDE), "Shipped beside the floors, but imported with the package")


@pytest.fixture
def project() -> dict[str, Any]:
    """The table of this name in pyproject.toml."""
    file = ROOT.parent / "pyproject.toml"
    if not file.exists():
        pytest.skip("pyproject.toml is not part of this copy")
    table: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))["project"]
    return table


def names_of(requirements: list[str]) -> set[str]:
    """The distributions that *requirements* name, in lower case."""
    return {re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def distributions(imported: set[str]) -> set[str]:
    """The distributions that have the packages *imported*, in lower case."""
    found = packages_distributions()
    return {name.lower() for package in imported for name in found.get(package, [f"nothing has {package}"])}


def test_what_is_imported_without_an_extra_is_a_dependency_and_nothing_else_is(project: dict[str, Any]) -> None:
    imported = {name for file in FILES.values() for name in others(file)} - sys.stdlib_module_names
    assert distributions(imported - OPTIONAL - UNDECLARED) == names_of(project["dependencies"])


def test_every_extra_brings_what_some_module_imports(project: dict[str, Any]) -> None:
    imported = {name for file in FILES.values() for name in others(file)} & OPTIONAL
    extras = {name: names_of(needed) for name, needed in project["optional-dependencies"].items()}
    for name in ("example", "test", "docs"):  # for this repository
        del extras[name]
    # An app makes a client of httpx2 and gives it as `client=`, so that no line here names the package.
    assert extras.pop("httpx2") == {"httpx2"}
    assert set.union(*extras.values()) == distributions(imported)
    assert distributions(OPTIONAL - {"httpx2"}) == distributions(imported)


def test_the_public_names_are_there_in_order_and_nothing_else() -> None:
    names = quart_openai_sse.__all__
    assert len(names) == len(set(names))
    assert all(hasattr(quart_openai_sse, name) for name in names)
    tree = FILES["__init__.py"].tree
    assert all(isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr) for node in tree.body)
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported - {"annotations"} == set(names)
