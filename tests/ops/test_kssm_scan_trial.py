"""The trial of the compiled scan: right kernels pass it, wrong ones are found out."""

import pytest
import torch
from torch import Tensor

from kssm.ops.kssm_scan import kernel, trial
from kssm.ops.kssm_scan.cuda_program import CudaError
from kssm.ops.kssm_scan.gates import ScanParameters

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh trial for each test, small enough for the interpreter."""
    trial.kernels_hold.cache_clear()
    monkeypatch.setattr(trial, "_SHAPES", ((2, 40, 32, 2),))


@pytest.mark.parametrize("gradients", [False, True])
def test_the_kernels_pass(gradients: bool) -> None:
    with torch.inference_mode():
        assert trial.kernels_hold(DEVICE, torch.float32, gradients)


@pytest.mark.parametrize("spoilt", ["y", "state", "gradient", "nan"])
def test_a_wrong_kernel_is_found_out(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel.scan_triton

    def wrong(
        alpha: Tensor,
        omega: Tensor,
        dt: Tensor,
        x: Tensor,
        b_re: Tensor,
        b_im: Tensor,
        parameters: ScanParameters,
        token_dt: Tensor | None,
        initial_state: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if spoilt == "gradient":
            omega = omega + 0.1 * (omega - omega.detach())
        rest = (parameters, token_dt, initial_state, lengths)
        y, state = right(alpha, omega, dt, x, b_re, b_im, *rest)
        if spoilt == "y":
            return torch.cat([1.01 * y[:, :-1], 2 * y[:, -1:]], dim=1), state
        if spoilt == "nan":
            return y * torch.nan, state
        return (y, 1.01 * state) if spoilt == "state" else (y, state)

    monkeypatch.setattr(kernel, "scan_triton", wrong)
    assert not trial.kernels_hold(DEVICE, torch.float32, True)


def test_kernels_that_cannot_be_compiled_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CudaError("NVRTC: no")

    monkeypatch.setattr(kernel, "scan_triton", refuse)
    assert not trial.kernels_hold(DEVICE, torch.float32, True)
