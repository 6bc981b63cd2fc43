"""Makes mutations of the mirrored log, and runs the tests that are to find them."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import SkipTest

import quart_openai_sse.logs.mirror as room
from quart_openai_sse.logs.mirror.log import MirrorLog
from tests.logs.mirror import test_faults
from tests.logs.mirror.chances.memory import play_in_virtual_time
from tests.logs.mirror.contract import MirrorContract, run_test
from tests.logs.mirror.sequences.waves import run_all
from tests.logs.mirror.sequences.worlds import in_memory
from tests.logs.mirror.virtual_time import run

ROOM = room.__name__
STORES = ("redis", "sqlite")
"""Modules of the room whose names begin like this are of stores, and have no mutations."""
SEEDS = 400
"""Of random faults, until one of them finds a mutation."""


@dataclass(frozen=True)
class Mutation:
    """A change of a module of the mirrored log, and what finds it.

    That is a test of the contract with two processes, a test of `test_faults`, "sequences", or "seeds": random faults.
    """

    name: str
    module: str
    before: str
    after: str
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def log_class(self) -> type[MirrorLog]:
        """The log with the mutation: the room's modules are imported a second time."""
        finder = _Finder(f"{ROOM}.{self.module}", self.before, self.after)
        loaded = {name: module for name, module in sys.modules.items() if _is_mutable(name)}
        attributes = {
            name: vars(room)[name] for name in vars(room).keys() & {each.rpartition(".")[2] for each in loaded}
        }
        for name in loaded:
            del sys.modules[name]
        sys.meta_path.insert(0, finder)
        try:
            log_class: type[MirrorLog] = importlib.import_module(f"{ROOM}.log").MirrorLog
        finally:
            sys.meta_path.remove(finder)
            sys.modules.update(loaded)
            vars(room).update(attributes)
        return log_class


def _is_mutable(name: str) -> bool:
    return name.startswith(f"{ROOM}.") and not name.removeprefix(f"{ROOM}.").startswith(STORES)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, with a changed source."""

    def __init__(self, name: str, before: str, after: str) -> None:
        self._name, self._before, self._after = name, before, after

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._before, self._after)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, before: str, after: str) -> None:
        super().__init__(name, path)
        self._before, self._after = before, after

    def get_code(self, fullname: str) -> Any:  # without the cache of compiled modules
        source = self.get_data(self.path).decode()
        assert source.count(self._before) == 1, f"{self._before!r} is there {source.count(self._before)} times"
        return compile(source.replace(self._before, self._after), self.path, "exec")


def finds(test: str) -> bool:
    """Whether a test fails with `MirrorContract.log_class`."""
    try:
        return _fails(test)
    except SkipTest:
        return False
    except Exception:
        return True


def _fails(test: str) -> bool:
    """Whether a test finds something, unless it raises."""
    if test == "sequences":
        return bool(run(run_all(in_memory, 3)).failed)
    if test == "seeds":
        return any(play_in_virtual_time(seed).failures for seed in range(SEEDS))
    if hasattr(MirrorContract, f"test_{test}"):
        run_test(MirrorContract, f"test_{test}")
    else:
        getattr(test_faults, f"test_{test}")()
    return False
