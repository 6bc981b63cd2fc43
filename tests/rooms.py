"""The rooms of the package, counted from its imports: `python -m tests.rooms`."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

PACKAGE = "quart_openai_sse"

FLOORS = {
    "the Quart shell": ("__init__", "extension", "flask", "web", "auth"),
    "the engine": ("relay", "producers"),
    "the interfaces": ("upstreams", "observers", "formats", "logs", "limits"),
    "the rules": ("protocol",),
    "the transport": ("transport",),
    "shared by all": ("config", "errors", "flow", "functions", "principal"),
}
"""From the top down. A place imports only from its own floor and those below it."""

BESIDE = ("simulator", "testing", "cli", "pytest_plugin")
"""Shipped beside the floors. These may import anything, and no floor imports them."""

SIMULATED = ("testing", "cli")
"""The only places that may import the simulator."""

SHARED = FLOORS["shared by all"]
LONG = 300  # lines

_HEIGHTS = {place: height for height, places in enumerate(reversed(FLOORS.values())) for place in places}

DESCRIPTION = "Counts the rooms of this package and the imports between them."

EPILOG = f"""\
  place    a folder with Python files directly in {PACKAGE}/, or a .py file directly in it
  arrow    one place imports another; counted once, however many imports there are. Imports within functions and
           under TYPE_CHECKING count too
  level    1 for a place that imports no other, otherwise one above the highest that it imports
  between rooms
           the arrows without those that start at __init__, which only lists the public names, and without those
           that end at {", ".join(SHARED[:-1])} or {SHARED[-1]}, which every place may import
  upwards  the importing place is on a lower floor than the imported one, or a floor imports what is shipped beside
           the floors. Places on no floor are not judged, but listed, and tests/test_imports.py fails for them
  circle   places, or files of one room, that import each other by any number of steps;
           all of them are one circle

The floors are written in tests/rooms.py.

Exit codes:
  0  no import points upwards, and there is no circle
  1  there is an import that points upwards, or a circle
  2  there is nothing to count at PATH
"""


class Failed(Exception):
    """The package could not be counted."""


@dataclass(frozen=True)
class File:
    """A Python file of the package."""

    path: str
    """Within the package: `relay/relay.py`."""
    tree: ast.Module
    lines: int
    imports: dict[str, set[str]] = field(default_factory=dict)
    """The files of the package that it imports, by path, and the names that it uses of each."""

    @property
    def place(self) -> str:
        """The folder directly in the package that it is in, or else its own name."""
        return place_of(self.path)


def place_of(path: str) -> str:
    """`web` for `web/views.py`, and `config` for `config.py`."""
    return path.partition("/")[0].removesuffix(".py")


class Import(NamedTuple):
    """One file imports another."""

    path: str
    imported: str
    names: frozenset[str]
    """What is used of the other."""

    @property
    def places(self) -> tuple[str, str]:
        """The places of the two files."""
        return place_of(self.path), place_of(self.imported)

    def __str__(self) -> str:
        return f"{self.path} -> {self.imported} ({', '.join(sorted(self.names))})"


@dataclass(frozen=True)
class Package:
    """A package: its files, by path, and what follows from their imports."""

    files: dict[str, File]

    @cached_property
    def places(self) -> dict[str, list[File]]:
        """The files of each place."""
        places: dict[str, list[File]] = {}
        for file in self.files.values():
            places.setdefault(file.place, []).append(file)
        return places

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """The other places that each place imports."""
        return {
            place: {place_of(path) for file in files for path in file.imports} - {place}
            for place, files in self.places.items()
        }

    def between_rooms(self) -> list[tuple[str, str]]:
        """The arrows, without those of the list of public names and those to what all share."""
        return [
            (place, imported)
            for place, others in self.arrows.items()
            for imported in others
            if place != "__init__" and imported not in SHARED
        ]

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one file by another."""
        return [
            Import(file.path, path, frozenset(names))
            for file in self.files.values()
            for path, names in sorted(file.imports.items())
        ]

    def upwards(self) -> list[tuple[str, str]]:
        """The arrows that the floors forbid."""
        pairs = ((place, imported) for place, others in self.arrows.items() for imported in sorted(others))
        return [pair for pair in pairs if points_upwards(*pair)]

    def on_no_floor(self) -> list[str]:
        """The places that `FLOORS` and `BESIDE` do not name."""
        return sorted(self.places.keys() - _HEIGHTS.keys() - set(BESIDE))

    def circles(self) -> list[list[str]]:
        """The places that import each other, in groups."""
        return circles(self.arrows)

    def circles_within(self) -> list[list[str]]:
        """The files of one place that import each other, in groups."""
        return [
            circle
            for place, files in self.places.items()
            for circle in circles(
                {file.path: {path for path in file.imports if place_of(path) == place} for file in files}
            )
        ]

    @cached_property
    def levels(self) -> dict[str, int]:
        """How high each place is above those that import nothing. The places of a circle are on one level."""
        levels: dict[str, int] = {}
        groups = {place: circle for circle in self.circles() for place in circle}

        def level(place: str) -> int:
            if place not in levels:
                group = groups.get(place, [place])
                below = {imported for each in group for imported in self.arrows[each]}.difference(group)
                levels.update(dict.fromkeys(group, 1 + max(map(level, below), default=0)))
            return levels[place]

        return {place: level(place) for place in self.places}


def points_upwards(place: str, imported: str) -> bool:
    """Whether the floors forbid that *place* imports *imported*."""
    if imported == "simulator":
        return place not in SIMULATED
    if place in BESIDE:
        return False
    if imported in BESIDE:
        return True
    return place in _HEIGHTS and imported in _HEIGHTS and _HEIGHTS[place] < _HEIGHTS[imported]


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of *graph* in which each leads to each of the others."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {tuple(sorted(each for each in reached[name] if name in reached[each])) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reached(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = set(graph.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


# Reading the package ----------------------------------------------------------------------------------------------


def installed() -> Path:
    """The folder of the package that Python imports; finding it runs none of it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise Failed(f"{PACKAGE} is not installed.")
    return Path(spec.origin).parent


def read_package(folder: Path) -> Package:
    """The package in *folder*, or in the checkout that *folder* is. Raises `Failed` if there is none."""
    folder = folder / PACKAGE if (folder / PACKAGE).is_dir() else folder
    if not (folder / "__init__.py").is_file():
        raise Failed(f"There is no package in {folder}.")
    files = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        name = path.relative_to(folder).as_posix()
        files[name] = File(name, ast.parse(text, name), text.count("\n"))
    modules = {_module(path): path for path in files}
    for file in files.values():
        for module, name in imported_names(file):
            imported, used = _target(modules, module, name)
            if imported is not None and imported != file.path:
                file.imports.setdefault(imported, set()).add(used)
    return Package(files)


def _module(path: str) -> str:
    """The dotted name: that of `logs/__init__.py` is `quart_openai_sse.logs`."""
    return f"{PACKAGE}/{path}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_names(file: File, *, only_at_the_top: bool = False) -> Iterator[tuple[str, str]]:
    """What *file* imports, ours or not: the module, and the name in it; "" where it is the module itself."""
    for node in file.tree.body if only_at_the_top else ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise Failed(f"{file.path}, line {node.lineno}: a relative import is not counted; write it in full.")
            yield from ((node.module, alias.name) for alias in node.names)


def _target(modules: Mapping[str, str], module: str, name: str) -> tuple[str | None, str]:
    """The file that has *name*, and what is used of it. `from quart_openai_sse.protocol import json` is a file too."""
    if (path := modules.get(f"{module}.{name}")) is not None:
        return path, name
    return modules.get(module), name or module


# The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints the count. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rooms",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--package",
        type=Path,
        metavar="PATH",
        help="count the package of another checkout instead; PATH is that checkout or its package",
    )
    options = parser.parse_args(arguments)
    try:
        package = read_package(options.package or installed())
    except Failed as failed:
        sys.stderr.write(f"{failed}\n")
        return 2
    sys.stdout.write(report(package))
    return 1 if package.upwards() or package.circles() or package.circles_within() else 0


def report(package: Package) -> str:
    """All that the command prints."""
    parts = (_summary, _places, upward_imports, circular_imports, _long)
    return "\n\n".join("\n".join(lines) for part in parts if (lines := part(package))) + "\n"


def _summary(package: Package) -> list[str]:
    counts = {
        "places": len(package.places),
        "levels": max(package.levels.values()),
        "arrows": sum(map(len, package.arrows.values())),
        "arrows between rooms": len(package.between_rooms()),
        "arrows that point upwards": len(package.upwards()),
        "circles between places": len(package.circles()),
        "circles between files of a room": len(package.circles_within()),
    }
    width = max(map(len, counts))
    lines = [f"{name:{width}}  {count:3}" for name, count in counts.items()]
    if unjudged := len(package.on_no_floor()):
        lines.append(f"places on no floor, so not judged: {unjudged}")
    return lines


def _places(package: Package) -> list[str]:
    """A line for each place, floor by floor."""
    floors = {**FLOORS, "beside the floors": BESIDE, "on no floor": package.on_no_floor()}
    width = max(map(len, package.places))
    lines = [f"{'':{width}}  level  files  lines  imports"]
    for floor, names in floors.items():
        places = [name for name in names if name in package.places]
        lines += [f"{floor}:"] if places else []
        for place in places:
            files = package.places[place]
            counts = f"{package.levels[place]:5}  {len(files):5}  {sum(file.lines for file in files):5}"
            lines.append(f"{place:{width}}  {counts}  {', '.join(sorted(package.arrows[place])) or '-'}")
    return lines


def upward_imports(package: Package) -> list[str]:
    """Each arrow that points upwards, and below it the imports that make it."""
    lines = []
    for arrow in package.upwards():
        lines.append(f"{' -> '.join(arrow)} points upwards:")
        lines += [f"  {each}" for each in package.imports if each.places == arrow]
    return lines


def circular_imports(package: Package) -> list[str]:
    """Each circle, and below it the imports within it."""
    lines = []
    for circle in package.circles():
        arrows = set(permutations(circle, 2))
        lines.append(f"{', '.join(circle)} import each other:")
        lines += [f"  {each}" for each in package.imports if each.places in arrows]
    for circle in package.circles_within():
        lines.append(f"{', '.join(circle)} import each other:")
        lines += [f"  {each}" for each in package.imports if {each.path, each.imported} <= set(circle)]
    return lines


def _long(package: Package) -> list[str]:
    """The long files, the longest first."""
    long = sorted((file for file in package.files.values() if file.lines > LONG), key=lambda file: -file.lines)
    return [f"files of more than {LONG} lines:", *(f"  {file.path} {file.lines}" for file in long)] if long else []


if __name__ == "__main__":
    sys.exit(main())
