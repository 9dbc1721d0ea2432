"""A store in one SQLite file, used by one thread of one process.

Every write is a transaction under ``synchronous=FULL``: when ``put`` returns, a power cut loses
nothing of it. The file is locked exclusively, because two servers on one store would both
continue the same sessions.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from kssm.errors import KSSMError
from service.stores.base import Record, Store

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FILE_NAME: Final = "sessions.sqlite3"
_SESSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS sessions (tenant TEXT NOT NULL, session_id TEXT NOT NULL, "
    "body BLOB NOT NULL, state BLOB NOT NULL, used_at REAL NOT NULL, "
    "PRIMARY KEY (tenant, session_id))"
)
_SECRETS: Final = "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL)"
_VERSION: Final = 2
LOCK_PATIENCE_S: Final = 5.0
"""How long a server that is just stopping may still hold the file."""


class SQLiteStore(Store):
    """Keeps records in ``path``: a file, or a folder in which the file is made."""

    durable = True

    def __init__(self, path: Path) -> None:
        folder = path.is_dir() or not (path.exists() or path.suffix)
        self.path = path / FILE_NAME if folder else path
        self._thread = ThreadPoolExecutor(1, "kssm-store")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or make the file and lock it. Raises ``KSSMError`` (`store_unavailable`)."""
        self._connection = await self._run(_connect, self.path)

    async def close(self) -> None:
        """Close the file and end the thread."""
        if self._connection is not None:
            await self._call(sqlite3.Connection.close)
            self._connection = None
        self._thread.shutdown()

    async def get(self, tenant: str, session_id: str) -> Record | None:
        """The record, if there is one."""
        return await self._call(_get, tenant, session_id)

    async def put(self, records: Sequence[Record]) -> None:
        """Write all records in one durable transaction."""
        await self._call(_put, records)

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Forget a record; says whether there was one."""
        return await self._call(_delete, tenant, session_id)

    async def unused_since(self, moment: float) -> Sequence[tuple[str, str]]:
        """Tenant and session id of the records last used before ``moment`` (Unix seconds)."""
        return await self._call(_unused_since, moment)

    async def count(self) -> int:
        """Number of records."""
        return await self._call(_count)

    async def secret(self) -> bytes:
        """32 random bytes made with the file."""
        return await self._call(_secret)

    async def _call(self, action: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        assert self._connection is not None, "the store is not open"
        return await self._run(action, self._connection, *args)

    async def _run(self, action: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, action, *args)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, timeout=LOCK_PATIENCE_S)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        message = f"cannot use the store {path}: {error}"
        raise KSSMError(message, code="store_unavailable") from error
    path.chmod(0o600)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in {0, _VERSION}:
        raise sqlite3.DatabaseError(f"its format is version {version}, not {_VERSION}")
    connection.execute(_SESSIONS)
    connection.execute(_SECRETS)
    connection.execute(f"PRAGMA user_version={_VERSION}")
    connection.execute("COMMIT")


def _get(connection: sqlite3.Connection, tenant: str, session_id: str) -> Record | None:
    query = "SELECT body, state, used_at FROM sessions WHERE tenant=? AND session_id=?"
    row = connection.execute(query, (tenant, session_id)).fetchone()
    return None if row is None else Record(tenant, session_id, *row)


def _put(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    query = (
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, session_id) "
        "DO UPDATE SET body=excluded.body, state=excluded.state, used_at=excluded.used_at"
    )
    values = [(r.tenant, r.session_id, r.body, r.state, r.used_at) for r in records]
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(query, values)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _delete(connection: sqlite3.Connection, tenant: str, session_id: str) -> bool:
    query = "DELETE FROM sessions WHERE tenant=? AND session_id=?"
    return connection.execute(query, (tenant, session_id)).rowcount > 0


def _unused_since(connection: sqlite3.Connection, moment: float) -> list[tuple[str, str]]:
    query = "SELECT tenant, session_id FROM sessions WHERE used_at < ?"
    return connection.execute(query, (moment,)).fetchall()


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0])


def _secret(connection: sqlite3.Connection) -> bytes:
    fresh = secrets.token_bytes(32)
    connection.execute("INSERT OR IGNORE INTO secrets VALUES ('state_key', ?)", (fresh,))
    query = "SELECT value FROM secrets WHERE name='state_key'"
    return bytes(connection.execute(query).fetchone()[0])
