"""The store in an SQLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quart_openai_sse.logs.mirror.sqlite import SQLiteStore
from tests.logs.mirror.store_contract import StoreContract


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SQLiteStore:
        return SQLiteStore(tmp_path / "instance/streams.db")

    def other(self, store: Any) -> SQLiteStore:
        return SQLiteStore(store._path)
