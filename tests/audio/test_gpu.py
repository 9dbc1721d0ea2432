"""Sound on a GPU: the same as on the CPU, up to rounding."""

from __future__ import annotations

import pytest
import torch

from tests.audio.support import sound, tiny_audio


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_call_on_the_gpu_is_the_call_on_the_cpu() -> None:
    x = sound(230, 3)
    x[0, 70:130] = torch.nan
    lengths = torch.tensor([230, 101, 0])
    results: list[list[torch.Tensor]] = []
    for device in ("cpu", "cuda"):
        model = tiny_audio().to(device)
        state = model.initial_state(3)
        output = model.prefill(x.to(device), state, lengths.to(device))
        ahead = model.forecast(output.state, 40, (0.1, 0.5, 0.9))
        results.append([output.tail.cpu(), ahead.cpu(), output.state["history"].cpu()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3, equal_nan=True)
