"""State blobs: exact round trips, and a code for every way to spoil one."""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from kssm.errors import InvalidInputError, StateError
from kssm.forecast.anomaly import fresh_state
from kssm.runtime.contract import StateSpec
from kssm.runtime.monitors import ENTRY, monitor_spec
from kssm.runtime.snapshot import FORMAT, check_tensors, decode, encode

SPEC: StateSpec = {
    "level": ((), torch.float64),
    "memory": ((3, 2), torch.float32),
}
KEY = b"a secret of the server"
Tensors = dict[str, NDArray[Any]]


def _tensors(channels: int = 2) -> Tensors:
    generator = np.random.default_rng(0)
    return {
        "level": generator.normal(size=channels),
        "memory": generator.normal(size=(channels, 3, 2)).astype(np.float32),
    }


def _encode(
    tensors: Mapping[str, NDArray[Any]] | None = None,
    *,
    fingerprint: str = "model-1",
    tenant: str = "acme",
    channels: int = 2,
    meta: Mapping[str, str] | None = None,
    key: bytes = KEY,
) -> bytes:
    return encode(
        _tensors() if tensors is None else tensors,
        fingerprint=fingerprint,
        tenant=tenant,
        channels=channels,
        meta=meta or {},
        key=key,
    )


def _decode(blob: bytes, spec: StateSpec = SPEC) -> tuple[Tensors, dict[str, str]]:
    return decode(blob, spec=spec, fingerprint="model-1", tenant="acme", channels=2, key=KEY)


def _code(blob: bytes) -> str:
    with pytest.raises(StateError) as refused:
        _decode(blob)
    return refused.value.code


def _header(blob: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8 : 8 + length])


def _with_header(blob: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    (length,) = struct.unpack_from("<Q", blob)
    header = _header(blob)
    change(header)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + blob[8 + length :]


META = st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))


@given(META)
def test_round_trip_is_exact(meta: dict[str, str]) -> None:
    tensors, found = _decode(_encode(meta=meta))
    assert found == meta
    assert tensors.keys() == SPEC.keys()
    for name, array in _tensors().items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].tobytes() == array.tobytes()


def test_metadata_that_imitates_the_signature_is_harmless() -> None:
    meta = {"signature": "0" * 64, "x": '"signature":"' + "0" * 64 + '"', "format": "other"}
    assert _decode(_encode(meta=meta))[1] == meta


def test_a_blob_is_a_plain_safetensors_file() -> None:
    np.testing.assert_array_equal(load(_encode())["level"], _tensors()["level"])
    assert _header(_encode())["__metadata__"]["format"] == FORMAT


def test_too_much_metadata_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        _encode(meta={"note": "x" * 100_000})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"tenant": "other"}, "state_foreign"),
        ({"fingerprint": "model-2"}, "state_mismatch"),
        ({"channels": 3, "tensors": _tensors(3)}, "state_mismatch"),
        ({"tensors": _tensors(3)}, "state_mismatch"),
        ({"key": b"another secret"}, "state_signature"),
    ],
)
def test_a_blob_of_somebody_or_something_else(arguments: dict[str, Any], code: str) -> None:
    assert _code(_encode(**arguments)) == code


def _changed(**entries: NDArray[Any] | None) -> Tensors:
    merged = {**_tensors(), **entries}
    return {name: array for name, array in merged.items() if array is not None}


@pytest.mark.parametrize(
    "tensors",
    [
        _changed(level=None),
        _changed(extra=np.zeros(2)),
        _changed(level=np.zeros(2, dtype=np.float32)),
        _changed(level=np.zeros(2, dtype=np.int64)),
        _changed(level=np.zeros((2, 1))),
        _changed(memory=np.zeros((2, 2, 3), dtype=np.float32)),
        _changed(level=np.array([0.0, np.nan])),
        _changed(memory=np.full((2, 3, 2), np.inf, dtype=np.float32)),
        {},
    ],
    ids=["missing", "extra", "float32", "int64", "rank", "shape", "nan", "inf", "empty"],
)
def test_signed_tensors_that_do_not_fit_the_model(tensors: Tensors) -> None:
    assert _code(_encode(tensors)) == "state_malformed"


def test_scalar_entries_cannot_pass_as_rows() -> None:
    with pytest.raises(StateError) as refused:
        check_tensors(_changed(level=np.float64(1.0).reshape(())), SPEC, 2)
    assert refused.value.code == "state_malformed"


def test_changed_headers() -> None:
    blob = _encode(meta={"seq": "7"})

    def metadata(**changes: object) -> Callable[[dict[str, Any]], object]:
        return lambda header: header["__metadata__"].update(changes)

    signature = _header(blob)["__metadata__"]["signature"]
    assert _code(_with_header(blob, metadata(**{"meta.seq": "8"}))) == "state_signature"
    assert _code(_with_header(blob, metadata(tenant="other"))) == "state_signature"
    assert _code(_with_header(blob, metadata(signature="0" * 64))) == "state_signature"
    assert _code(_with_header(blob, metadata(signature=signature.upper()))) == "state_signature"
    assert _code(_with_header(blob, metadata(signature="\ud800"))) in {
        "state_signature",
        "state_malformed",
    }
    assert _code(_with_header(blob, metadata(format="kssm-state-0"))) == "state_malformed"
    assert _code(_with_header(blob, lambda h: h["__metadata__"].pop("signature")))
    assert _code(_with_header(blob, lambda h: h.pop("__metadata__"))) == "state_malformed"
    assert _code(_with_header(blob, lambda h: h.update(__metadata__=[]))) == "state_malformed"
    assert _code(_with_header(blob, metadata(channels=2))) == "state_malformed"
    assert _code(_with_header(blob, lambda h: h.pop("level"))) == "state_malformed"
    assert _code(save(_tensors())) == "state_malformed"


def test_changed_lengths() -> None:
    blob = _encode()
    for cut in [0, 1, 7, 8, 9, 100, len(blob) - 1]:
        assert _code(blob[:cut]) == "state_malformed"
    assert _code(blob + b"\0") == "state_malformed"
    assert _code(struct.pack("<Q", 2**63) + blob[8:]) == "state_malformed"
    assert _code(struct.pack("<Q", 0) + blob[8:]) == "state_malformed"


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    blob = bytearray(_encode())
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    assert _code(bytes(blob)) in {"state_malformed", "state_signature"}


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed(blob: bytes) -> None:
    assert _code(blob) == "state_malformed"


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.dictionaries(st.text(), x)))
def test_random_headers_are_malformed(header: object) -> None:
    raw = json.dumps(header).encode()
    assert _code(struct.pack("<Q", len(raw)) + raw) == "state_malformed"
    raw = json.dumps({"__metadata__": header}).encode()
    assert _code(struct.pack("<Q", len(raw)) + raw) == "state_malformed"


def test_deeply_nested_headers_are_malformed() -> None:
    raw = b"[" * 100_000
    assert _code(struct.pack("<Q", len(raw)) + raw) == "state_malformed"


def _first_format(blob: bytes) -> bytes:
    """The blob as the first format's code would have made and signed it."""
    unsigned = _with_header(
        blob, lambda header: header["__metadata__"].update(format="kssm-state-1")
    )
    signature = _header(blob)["__metadata__"]["signature"]
    zeros = unsigned.replace(signature.encode(), b"0" * 64, 1)
    return zeros.replace(b"0" * 64, hmac.digest(KEY, zeros, "sha256").hex().encode(), 1)


def test_states_from_before_the_monitors_get_fresh_ones() -> None:
    tensors, _ = _decode(_first_format(_encode()), {**SPEC, **monitor_spec(scored=True)})
    np.testing.assert_array_equal(tensors.pop(ENTRY), fresh_state(2))
    for name, array in _tensors().items():
        np.testing.assert_array_equal(tensors[name], array)


def test_states_of_the_first_format_need_no_monitors() -> None:
    tensors, _ = _decode(_first_format(_encode()))
    assert tensors.keys() == SPEC.keys()


def test_states_of_this_format_must_have_their_monitors() -> None:
    with pytest.raises(StateError) as refused:
        _decode(_encode(), {**SPEC, **monitor_spec(scored=True)})
    assert refused.value.code == "state_malformed"
