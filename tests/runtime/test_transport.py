"""Arrays between host and device: copies, and one wait for all that is queued."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.runtime.transport import Transport

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_arrays_come_back_as_they_went(device: str) -> None:
    transport = Transport(torch.device(device))
    arrays = [np.arange(5), np.array([[1.5, np.nan]]), np.array([True, False])]
    moved = [transport.upload(array) for array in arrays]
    assert all(tensor.device.type == device for tensor in moved)
    pending = [transport.download(tensor) for tensor in moved]
    for array, back in zip(arrays, pending, strict=True):
        fetched = transport.fetch(back)
        assert fetched.dtype == array.dtype
        np.testing.assert_array_equal(fetched, array)


@pytest.mark.parametrize(
    ("device", "waits"), [("cpu", 0), pytest.param("cuda", 1, marks=GPU.marks)]
)
def test_one_wait_serves_all_downloads(device: str, waits: int) -> None:
    transport = Transport(torch.device(device))
    pending = [transport.download(transport.upload(np.full(3, i))) for i in range(4)]
    for i in (2, 0, 3, 1, 1):
        assert transport.fetch(pending[i]).tolist() == [i] * 3
    assert transport.waits == waits
