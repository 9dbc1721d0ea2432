"""Settings of the server: arguments first, then ``KSSM_...`` environment variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kssm.errors import InvalidInputError
from kssm.weight_format import WeightFormat
from service.errors import invalid

PREFIX = "KSSM_"
OTHERS = frozenset({"KSSM_NATIVE", "KSSM_TUNING_CACHE"})
"""Variables with the prefix that the library itself reads."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Everything an operator can set. Unknown fields and unknown ``KSSM_`` variables raise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    model: str = "kssm-signal-base"
    weights: WeightFormat | None = None
    """Format that the model's weights get; by default the one they are stored in."""
    device: str = "auto"
    store: Path | None = None
    """SQLite file (or a folder for it) that keeps sessions over a restart; "memory" is none."""
    api_keys: dict[str, str] = Field(default_factory=dict)
    """Tenant to SHA-256 (hex) of its key; empty leaves the server open."""
    allowed_origins: tuple[str, ...] = ()
    """Browser origins beside the server's own; ``*`` allows all."""
    state_key: SecretStr | None = None
    """32 bytes in hex that sign exported states; by default random and kept in the store."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"

    max_sessions: Positive = 16_384
    max_rows: Positive = 65_536
    max_channels: Positive = 256
    max_horizon: Positive = 1_024
    max_quantiles: Positive = 99
    max_series: Positive = 1_024
    max_tokens: Positive = 4_096
    """Tokens that one ``generate.create`` may ask for."""
    window: Positive | None = None
    """Tokens that a language model's attention sees, where its own are more."""
    max_reply_values: Positive = 262_144
    """Channels (or series) x quantiles x horizon of one answer."""
    max_message_bytes: Positive = 1 << 20
    max_body_bytes: Positive = 16 << 20
    max_in_flight: Positive = 256
    """Unanswered messages of one connection."""
    session_ttl_s: Annotated[float, Field(ge=0)] = 7 * 86400.0
    """How long a session may go unused before it is ended; 0 keeps all."""
    drain_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0

    @field_validator("store", mode="before")
    @classmethod
    def _memory_is_no_file(cls, store: object) -> object:
        return None if str(store) == "memory" else store

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, data: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields}
        present = {name.upper() for name in os.environ if name.upper().startswith(PREFIX)}
        unknown = sorted(present - known - OTHERS)
        if unknown:
            raise ValueError(f"unknown environment variables: {', '.join(unknown)}")
        return data

    @field_validator("api_keys")
    @classmethod
    def _check_hashes(cls, keys: dict[str, str]) -> dict[str, str]:
        for tenant, digest in keys.items():
            if not tenant or not _SHA256.fullmatch(digest):
                raise ValueError("api_keys maps tenants to lower-case hex SHA-256 digests")
        return keys

    @field_validator("state_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _SHA256.fullmatch(key.get_secret_value().lower()):
            raise ValueError("state_key is 32 bytes written as 64 hexadecimal digits")
        return key

    @property
    def state_key_bytes(self) -> bytes | None:
        """The signing key, if one is set."""
        return None if self.state_key is None else bytes.fromhex(self.state_key.get_secret_value())


def load_settings(**overrides: Any) -> Settings:
    """Settings from ``overrides`` (``None`` = not given) and the environment.

    Raises ``InvalidInputError`` (code `invalid_settings`) that names the first bad setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise invalid(error, "invalid_settings") from None
    except ValueError as error:
        message = f"{error}: lists and maps are written as JSON"
        raise InvalidInputError(message, code="invalid_settings") from None
