"""Sequences of different lengths packed one after the other, for the backends in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan.gates import ScanParameters, compute_dtype


def check_offsets(offsets: Tensor, batch: int, tokens: int, lengths: Tensor | None) -> None:
    """Raise InvalidInputError unless ``offsets`` cut [1, tokens] into sequences.

    The values are looked at on a CPU only: a GPU would have to be waited for.
    """
    if batch != 1 or lengths is not None or len(offsets) < 2:
        raise InvalidInputError(
            "cu_seqlens [sequences + 1] needs inputs [1, total, ...] and no lengths",
            code="invalid_cu_seqlens",
        )
    if offsets.device.type != "cpu":
        return
    if offsets[0] != 0 or offsets[-1] != tokens or bool((offsets.diff() < 0).any()):
        raise InvalidInputError(
            f"cu_seqlens must rise from 0 to {tokens}", code="invalid_cu_seqlens"
        )


def scan_packed(
    scan: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    parameters: ScanParameters,
    token_dt: Tensor | None,
    initial_state: Tensor | None,
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """(y [1, total, D], last states [N, D, 2]) from ``scan`` on each sequence by itself."""
    x = inputs[3]
    start = initial_state
    if start is None:
        start = x.new_zeros(len(offsets) - 1, x.shape[-1], 2, dtype=compute_dtype(x.dtype))
    outputs: list[Tensor] = []
    states: list[Tensor] = []
    for row, (first, end) in enumerate(itertools.pairwise(offsets.tolist())):
        state = start[row : row + 1]
        if end > first:
            factor = None if token_dt is None else token_dt[:, first:end]
            tokens = (t[:, first:end] for t in inputs)
            y, state = scan(*tokens, parameters, factor, state, None)
            outputs.append(y)
        states.append(state.to(compute_dtype(x.dtype)))
    return torch.cat(outputs, dim=1), torch.cat(states)
