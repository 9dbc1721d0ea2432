"""Who is asking: API keys to tenants, and which browser pages may open a stream."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from kssm.errors import UnauthorizedError

OPEN_TENANT: Final = "default"


class Authenticator:
    """Knows tenants by the SHA-256 of their keys; without any, everybody is one tenant."""

    def __init__(self, api_keys: Mapping[str, str]) -> None:
        self._digests = {tenant: bytes.fromhex(digest) for tenant, digest in api_keys.items()}

    def tenant(self, key: str | None) -> str:
        """The tenant of ``key``, in time that does not depend on how close it is to a right one.

        Raises ``UnauthorizedError``.
        """
        if not self._digests:
            return OPEN_TENANT
        digest = hashlib.sha256((key or "").encode(errors="replace")).digest()
        found = None
        for tenant, expected in self._digests.items():
            if hmac.compare_digest(digest, expected):
                found = tenant
        if key is None or found is None:
            raise UnauthorizedError("a valid API key is needed: Authorization: Bearer KEY")
        return found


def bearer(authorization: str | None) -> str | None:
    """The key in an ``Authorization: Bearer KEY`` header, if it is one."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def origin_allowed(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a page of ``origin`` may open a stream to the server it calls ``host``."""
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False
