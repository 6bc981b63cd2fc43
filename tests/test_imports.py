"""The house: imports point down only, in no circle, and the lower floors know no Quart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import quart_openai_sse

PACKAGE = "quart_openai_sse"
ROOT = Path(quart_openai_sse.__file__).parent

FLOORS = {
    "the words": ["protocol", "errors", "principal", "config"],
    "the doors": ["transport", "upstreams", "formats", "logs", "limits", "observers"],
    "the engine": ["producers", "relay"],
    "the shell": ["auth", "flask", "web", "extension", "__init__"],
}
BESIDE = {"testing", "pytest_plugin", "simulator", "cli"}
"""Shipped for tests and for trying out: they may import anything, and no floor imports them."""

OPTIONAL = {
    "a2wsgi",
    "quart_auth",
    "jwt",
    "quart_rate_limiter",
    "httpx2",
}
"""Installed by extras: imported by the one module that needs it, or within the function that does."""

UNDECLARED = {"pytest", "_typeshed"}
"""Imported where they are there in any case: pytest loads its plugin, and type checkers bring their stubs."""

HEIGHT = {module: height for height, modules in enumerate(FLOORS.values()) for module in modules}


def module_name(path: Path) -> str:
    """`logs/memory.py` is `logs.memory`, `logs/__init__.py` is `logs`, and the package's own is `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = sorted(PATHS)


def top(module: str) -> str:
    """The module or package directly below ours: a package stands on one floor."""
    return module.partition(".")[0]


def imports(module: str, *, only_at_the_top: bool = False) -> Iterator[str]:
    """The full names of what *module* imports; of `from a import b` both `a` and `a.b`."""
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    for node in tree.body if only_at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of ours that *module* imports."""
    names = (name.removeprefix(f"{PACKAGE}.") for name in imports(module) if name.startswith(f"{PACKAGE}."))
    return {name for name in names if name in PATHS} - {module}


def others(module: str, *, only_at_the_top: bool = False) -> set[str]:
    """The foreign packages that *module* imports."""
    return {top(name) for name in imports(module, only_at_the_top=only_at_the_top)} - {PACKAGE}


ON_A_FLOOR = [module for module in MODULES if top(module) in HEIGHT]


def test_every_module_has_its_place() -> None:
    assert {top(module) for module in MODULES} - BESIDE == HEIGHT.keys()


def test_the_test_finds_imports() -> None:
    assert {"errors", "protocol.chunks"} <= ours("protocol.completion")
    assert "logs" in ours("relay.relay")
    assert "logs.memory" in ours("web.state")
    assert "config" in ours("extension")
    assert "quart" in others("extension")
    assert "httpx" in others("upstreams.httpx_client")


def offenders(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Those of whom something was found, and what."""
    return {module: names for module, names in found.items() if names}


def test_imports_point_down_only() -> None:
    upwards = {
        module: {name for name in ours(module) if HEIGHT.get(top(name), 99) > HEIGHT[top(module)]}
        for module in ON_A_FLOOR
    }
    assert offenders(upwards) == {}


def test_there_are_no_circles() -> None:
    # Raises CycleError, which names the circle.
    tuple(TopologicalSorter({module: ours(module) for module in MODULES}).static_order())


def test_nothing_imports_the_extension_but_the_package_itself() -> None:
    assert {module for module in MODULES if "extension" in ours(module) and top(module) not in BESIDE} == {"__init__"}


def test_nothing_of_ours_is_imported_by_way_of_the_package() -> None:
    # `from quart_openai_sse import X` would run the whole house to get at one room.
    named = {
        module: {name.removeprefix(f"{PACKAGE}.") for name in imports(module) if name.startswith(f"{PACKAGE}.")}
        for module in MODULES
    }
    direct = {module: {name for name in names if "." not in name} - PATHS.keys() for module, names in named.items()}
    assert offenders(direct) == {}


def test_what_is_shipped_for_tests_is_imported_by_nothing_else() -> None:
    users = {module: {top(name) for name in ours(module)} & BESIDE - {top(module)} for module in MODULES}
    assert offenders({module: used for module, used in users.items() if top(module) not in BESIDE}) == {}
    assert users["cli"] <= {"simulator"}


def test_below_the_shell_there_is_no_quart() -> None:
    shell = {"quart", "werkzeug", "flask", "hypercorn", "jinja2"}
    below = [module for module in ON_A_FLOOR if HEIGHT[top(module)] < HEIGHT["__init__"]]
    assert offenders({module: others(module) & shell for module in below}) == {}


def test_the_rules_wait_for_nothing_and_look_at_no_clock() -> None:
    rules = [module for module in ON_A_FLOOR if HEIGHT[top(module)] < HEIGHT["upstreams"]]
    world = {"asyncio", "time", "datetime", "httpx", "socket", "threading"}
    assert offenders({module: others(module) & world for module in rules}) == {}
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    trees = {module: ast.parse(PATHS[module].read_text(encoding="utf-8")) for module in rules}
    found = {
        module: {f"line {node.lineno}" for node in ast.walk(tree) if isinstance(node, waiting)}
        for module, tree in trees.items()
    }
    assert offenders(found) == {}


def test_an_optional_dependency_is_the_affair_of_one_module() -> None:
    users: dict[str, set[str]] = {}
    for module in MODULES:
        for name in others(module) & OPTIONAL:
            users.setdefault(name, set()).add(module)
    assert all(len({top(module) for module in modules}) == 1 for modules in users.values()), users
    always = {name for module in ours("__init__") for name in others(module, only_at_the_top=True)}
    assert not always & OPTIONAL


def test_the_package_is_imported_without_any_extra() -> None:
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL)!r}))\n"  # None: importing it fails
        f"import {PACKAGE}\n"
        f"print(sorted(name for name in sys.modules if name.startswith('{PACKAGE}.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = {name.removeprefix(f"{PACKAGE}.") for name in ast.literal_eval(done.stdout)}
    assert not {top(name) for name in loaded} & BESIDE


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
    imported = {name for module in MODULES for name in others(module)} - sys.stdlib_module_names
    assert distributions(imported - OPTIONAL - UNDECLARED) == names_of(project["dependencies"])


def test_every_extra_brings_what_some_module_imports(project: dict[str, Any]) -> None:
    imported = {name for module in MODULES for name in others(module)} & OPTIONAL
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
    tree = ast.parse(PATHS["__init__"].read_text(encoding="utf-8"))
    assert all(isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr) for node in tree.body)
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported - {"annotations"} == set(names)
