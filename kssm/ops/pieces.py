"""Long sequences piece by piece, so that memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Advance = Callable[..., tuple[Tensor, Tensor]]
"""(state, *tokens) -> (outputs, next state)."""


def piece_length(device: torch.device) -> int:
    """Tokens whose states [B, tokens, D, N] a scan should hold at the same time.

    On a CPU they should stay in its cache, and are a single chunk of ``linear_scan``; on a GPU
    there should be enough of them to walk many chunks at once.
    """
    return 32 if device.type == "cpu" else 256


def in_pieces(
    advance: Advance, state: Tensor, tokens: Sequence[Tensor], length: int
) -> tuple[Tensor, Tensor]:
    """Run ``advance`` over pieces of at most ``length`` tokens (dim 1), one after the other.

    With more than one piece, what a piece computes on the way is not kept for the gradient but
    computed again in backward: the memory is that of one piece, and one state for each.

    Returns:
        The outputs of all pieces, joined along dim 1, and the last state.
    """
    pieces = list(zip(*(entry.split(length, dim=1) for entry in tokens), strict=True))
    again = torch.is_grad_enabled() and len(pieces) > 1
    outputs: list[Tensor] = []
    for piece in pieces:
        if again:
            y, state = checkpoint(advance, state, *piece, use_reentrant=False)
        else:
            y, state = advance(state, *piece)
        outputs.append(y)
    return (torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]), state
