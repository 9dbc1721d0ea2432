"""A session's state as bytes that can be trusted when they come back.

A blob is a safetensors file whose metadata names the format, the model, the owner and the number
of channels, and carries an HMAC-SHA256 over every other byte of the file. ``decode`` checks all
of it, and every tensor, before it returns anything.

Format 1 had no anomaly monitors: a blob of it gets fresh ones.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from kssm.errors import InvalidInputError, StateError
from kssm.forecast.anomaly import fresh_state
from kssm.runtime.contract import StateSpec
from kssm.runtime.monitors import ENTRY

FORMAT = "kssm-state-2"
MAX_META_BYTES = 65536

Tensors = dict[str, NDArray[Any]]

_FIRST_FORMAT = "kssm-state-1"
_SIGNATURE = "signature"
_UNSIGNED = "0" * 64
_META_PREFIX = "meta."
_NUMPY = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}


def encode(
    tensors: Mapping[str, NDArray[Any]],
    *,
    fingerprint: str,
    tenant: str,
    channels: int,
    meta: Mapping[str, str],
    key: bytes,
) -> bytes:
    """Serialise ``tensors`` ([channels, ...] each), signed with ``key``.

    ``meta`` holds the caller's own strings; InvalidInputError when they are too long.
    """
    header = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "tenant": tenant,
        "channels": str(channels),
        **{_META_PREFIX + name: value for name, value in meta.items()},
    }
    if sum(len(name) + len(value) for name, value in header.items()) > MAX_META_BYTES:
        raise InvalidInputError("the state's metadata is too long")
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    unsigned = save_tensors(arrays, metadata={**header, _SIGNATURE: _UNSIGNED})
    signature = hmac.digest(key, unsigned, hashlib.sha256).hex()
    return unsigned.replace(_signature_field(_UNSIGNED), _signature_field(signature), 1)


def decode(
    blob: bytes,
    *,
    spec: StateSpec,
    fingerprint: str,
    tenant: str,
    channels: int,
    key: bytes,
) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the caller's metadata of a blob that ``encode`` made.

    Raises StateError: ``state_malformed`` (not such a blob, or tensors that are not this
    specification's), ``state_signature`` (changed, or signed with another key),
    ``state_mismatch`` (another model or number of channels), ``state_foreign`` (another tenant).
    """
    header = _read_header(blob)
    arrays = _read_tensors(blob)
    _check_signature(blob, header[_SIGNATURE], key)
    _check_owner(header, fingerprint, tenant, channels)
    if header["format"] == _FIRST_FORMAT and ENTRY in spec:
        arrays[ENTRY] = fresh_state(channels)
    check_tensors(arrays, spec, channels)
    meta = {
        name.removeprefix(_META_PREFIX): value
        for name, value in header.items()
        if name.startswith(_META_PREFIX)
    }
    return arrays, meta


def check_tensors(tensors: Mapping[str, NDArray[Any]], spec: StateSpec, channels: int) -> None:
    """StateError unless ``tensors`` are finite and exactly what ``spec`` asks for."""
    if set(tensors) != set(spec):
        raise _malformed("the state does not hold the model's entries")
    for name, (shape, dtype) in spec.items():
        array = tensors[name]
        if array.dtype != _NUMPY[dtype]:
            raise _malformed(f"state entry {name} has dtype {array.dtype}")
        if array.ndim == 0 or array.shape[1:] != shape:
            raise _malformed(f"state entry {name} has the wrong shape")
        if array.shape[0] != channels:
            raise StateError("the state has another number of channels", code="state_mismatch")
        if not np.isfinite(array).all():
            raise _malformed(f"state entry {name} is not finite")


def _malformed(message: str) -> StateError:
    return StateError(message, code="state_malformed")


def _check_owner(header: Mapping[str, str], fingerprint: str, tenant: str, channels: int) -> None:
    if header["tenant"] != tenant:
        raise StateError("the state belongs to another tenant", code="state_foreign")
    if header["fingerprint"] != fingerprint:
        raise StateError("the state belongs to another model", code="state_mismatch")
    if header["channels"] != str(channels):
        raise StateError("the state has another number of channels", code="state_mismatch")


def _read_header(blob: bytes) -> dict[str, str]:
    if len(blob) < 8:
        raise _malformed("the state is too short")
    (length,) = struct.unpack_from("<Q", blob)
    if length > min(len(blob) - 8, 16 * MAX_META_BYTES):
        raise _malformed("the state's header is longer than the state")
    try:
        header: object = json.loads(blob[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise _malformed("the state's header is not JSON") from error
    return _metadata(header)


def _metadata(header: object) -> dict[str, str]:
    found = cast("dict[str, object]", header).get("__metadata__") if _is_dict(header) else None
    if not isinstance(found, dict):
        raise _malformed("the state has no metadata")
    metadata = cast("dict[str, object]", found)
    strings = {name: value for name, value in metadata.items() if isinstance(value, str)}
    required = {"format", "fingerprint", "tenant", "channels", _SIGNATURE}
    if len(strings) != len(metadata) or not required <= strings.keys():
        raise _malformed("the state's metadata is incomplete")
    if strings["format"] not in {FORMAT, _FIRST_FORMAT}:
        raise _malformed("the state has an unknown format")
    return strings


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _read_tensors(blob: bytes) -> Tensors:
    try:  # refuses overlaps, holes and trailing bytes: the blob's length is exact
        return load_tensors(blob)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _malformed("the state is not a safetensors file") from error


def _check_signature(blob: bytes, signature: str, key: bytes) -> None:
    unsigned = blob.replace(_signature_field(signature), _signature_field(_UNSIGNED), 1)
    expected = hmac.digest(key, unsigned, hashlib.sha256).hex()
    if not hmac.compare_digest(_signature_field(signature), _signature_field(expected)):
        raise StateError("the state's signature is wrong", code="state_signature")


def _signature_field(signature: str) -> bytes:
    """The field as it stands in the header; no quoted string can contain it unescaped."""
    return f'"{_SIGNATURE}":"{signature}"'.encode(errors="replace")
