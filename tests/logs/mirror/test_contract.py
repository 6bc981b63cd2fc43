"""The mirrored log keeps the contract of a log: with one process, and with two."""

from __future__ import annotations

import pytest

from tests.logs.mirror.contract import CONTRACTS, MirrorContract, names_of, run_test


@pytest.mark.parametrize(
    ("contract", "name"), [(contract, name) for contract in CONTRACTS for name in names_of(contract)]
)
def test_in_memory(contract: type[MirrorContract], name: str) -> None:
    run_test(contract, name)
