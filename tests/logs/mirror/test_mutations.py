"""The tests of the mirrored log find faults: each mutation of it fails the tests that are named beside it."""

from __future__ import annotations

import logging

import pytest

from tests.logs.mirror.contract import MirrorContract
from tests.logs.mirror.mutating import Mutation, finds
from tests.logs.mirror.mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_found(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(MirrorContract, "log_class", mutation.log_class())
    assert [test for test in mutation.caught_by if finds(test)] == list(mutation.caught_by)
