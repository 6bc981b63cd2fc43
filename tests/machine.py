"""The programs that tests need. Without one, a test is skipped with a line that names the package; in CI it fails."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from tests.benchmarks.prepare import GO_PACKAGES
from tests.matrix.plan import CHROMIUM


def chromium_path() -> str:
    """The path of Chromium. Its headless shell is looked for first: it takes two thirds of the CPU time."""
    return _program(*CHROMIUM, install="chromium-headless-shell")


def nginx_path() -> str:
    """The path of nginx, which Debian keeps where only root looks."""
    return _program("nginx", install="nginx")


def redis_path() -> str:
    """The path of Redis."""
    return _program("redis-server", install="redis-server")


def need_curl() -> None:
    """For the shell examples of the documentation."""
    _program("curl", install="curl")


def need_git() -> None:
    """For the comparison with another commit."""
    _program("git", install="git")


def need_go_and_gin() -> None:
    """For the benchmark's programs."""
    _program("go", install="golang-go")
    if not Path(GO_PACKAGES, "src/github.com/gin-gonic/gin").is_dir():
        _missing("Gin's sources", install="golang-github-gin-gonic-gin-dev")


def need_python_package(name: str) -> None:
    """For the type checkers."""
    if find_spec(name) is None:
        _unmet(f"{name} is not installed; `pip install {name}` brings it")


def _program(*names: str, install: str) -> str:
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    found = next(filter(None, (shutil.which(name, path=places) for name in names)), None)
    return found or _missing(names[0], install=install)


def _missing(what: str, *, install: str) -> NoReturn:
    _unmet(f"{what} is not installed; Debian's package is {install}")


def _unmet(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"CI runs every test, but {reason}", pytrace=False)
    pytest.skip(reason)
