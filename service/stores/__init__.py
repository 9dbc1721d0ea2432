"""Where sessions rest: host memory, or a SQLite file that outlives the process."""

from __future__ import annotations

from pathlib import Path

from service.stores.base import Record, Store
from service.stores.memory import MemoryStore
from service.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "Record", "SQLiteStore", "Store", "open_store"]


def open_store(path: Path | None) -> Store:
    """The store for the setting ``store``; nothing is touched before ``Store.open``."""
    return MemoryStore() if path is None else SQLiteStore(path)
