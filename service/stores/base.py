"""The contract of a session store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """A session at rest: ``body`` is its JSON, ``state`` its signed snapshot.

    ``used_at`` is when it was last used, in Unix seconds.
    """

    tenant: str
    session_id: str
    body: bytes
    state: bytes
    used_at: float = 0.0


class Store(ABC):
    """Keeps records by tenant and session id; awaited from one event loop."""

    durable: bool
    """Whether records outlive the process."""

    @abstractmethod
    async def open(self) -> None:
        """Make the store usable. Raises ``KSSMError`` (`store_unavailable`)."""

    @abstractmethod
    async def close(self) -> None:
        """Release what ``open`` took; what was put stays, where the store is durable."""

    @abstractmethod
    async def get(self, tenant: str, session_id: str) -> Record | None:
        """The record, if there is one."""

    @abstractmethod
    async def put(self, records: Sequence[Record]) -> None:
        """Write all records or none; on return they are as safe as the store makes them."""

    @abstractmethod
    async def delete(self, tenant: str, session_id: str) -> bool:
        """Forget a record; says whether there was one."""

    @abstractmethod
    async def unused_since(self, moment: float) -> Sequence[tuple[str, str]]:
        """Tenant and session id of the records last used before ``moment`` (Unix seconds)."""

    @abstractmethod
    async def count(self) -> int:
        """Number of records."""

    @abstractmethod
    async def secret(self) -> bytes:
        """32 random bytes, the same for the life of the store."""
