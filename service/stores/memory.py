"""A store in host memory: the tier below the engine's arena when nothing is kept on disk."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from service.stores.base import Record, Store


class MemoryStore(Store):
    """Keeps records until the process ends."""

    durable = False

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}
        self._secret = secrets.token_bytes(32)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def get(self, tenant: str, session_id: str) -> Record | None:
        """The record, if there is one."""
        return self._records.get((tenant, session_id))

    async def put(self, records: Sequence[Record]) -> None:
        """Keep the records."""
        self._records.update({(record.tenant, record.session_id): record for record in records})

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Forget a record; says whether there was one."""
        return self._records.pop((tenant, session_id), None) is not None

    async def unused_since(self, moment: float) -> Sequence[tuple[str, str]]:
        """Tenant and session id of the records last used before ``moment`` (Unix seconds)."""
        return [key for key, record in self._records.items() if record.used_at < moment]

    async def count(self) -> int:
        """Number of records."""
        return len(self._records)

    async def secret(self) -> bytes:
        """32 random bytes of this process."""
        return self._secret
