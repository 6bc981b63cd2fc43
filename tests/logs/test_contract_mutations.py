"""The contract finds faults: each mutation of the SQLite log fails the tests that are named beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.conftest import Clock
from tests.logs.mutations import MUTATIONS, Mutation
from tests.logs.sqlite_log import SQLiteLog
from tests.logs.test_sqlite_log import POLL
from tests.logs.test_sqlite_log import TestInOneProcess as OneProcess
from tests.logs.test_sqlite_log import TestInTwoProcesses as TwoProcesses

TESTS = [name for name in dir(OneProcess) if name.startswith("test_") and callable(getattr(OneProcess, name))]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
async def test_the_contract_finds(mutation: Mutation, tmp_path: Path) -> None:
    caught_by = [f"test_{name}" for name in mutation.caught_by]
    processes = TwoProcesses if mutation.only_in_two else OneProcess
    assert await failures(mutation.log_class(), processes, caught_by, tmp_path) == caught_by


@pytest.mark.parametrize("mutation", MUTATIONS[:2], ids=str)
async def test_all_tests_with_one_process_do_not_find(mutation: Mutation, tmp_path: Path) -> None:
    assert await failures(mutation.log_class(), OneProcess, TESTS, tmp_path, timeout=10) == []


async def failures(
    log_class: type[SQLiteLog],
    contract: type[OneProcess],
    tests: Iterable[str],
    folder: Path,
    *,
    timeout: float = 0.4,
) -> list[str]:
    """Those of *tests* that fail, all run at the same time with *timeout* seconds for each."""

    async def fails(name: str) -> bool:
        test = contract()
        test.timeout = timeout
        try:
            await getattr(test, name)(log_class(folder / f"{name}.db", poll=POLL, clock=Clock()))
        except SkipTest:
            return False
        except Exception:
            return True
        return False

    failed = await asyncio.gather(*(fails(name) for name in tests))
    return [name for name, fail in zip(tests, failed, strict=True) if fail]
