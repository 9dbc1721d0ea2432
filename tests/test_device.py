from __future__ import annotations

import pytest
import torch

from kssm.device import resolve_device
from kssm.errors import InvalidInputError


def test_auto_is_a_device_there_is():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "teapot", "cpu:x", ""])
def test_a_device_that_does_not_exist_is_an_error(name):
    with pytest.raises(InvalidInputError) as caught:
        resolve_device(name)
    assert caught.value.code == "invalid_device"
