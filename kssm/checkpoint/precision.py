"""Which weights may be kept in fewer bits.

Matrices of linear layers and embeddings may: their errors average out. All other parameters stay
in fp32 (fp64): decays, frequencies and steps of the recurrences act once a token for ever, and
norms and biases weigh nothing.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from kssm.errors import InvalidInputError

DTYPES: Final[dict[str, torch.dtype]] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def matrix_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that may be stored and computed with in 16 bits."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    )


def convert_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the matrices ``dtype`` and all other parameters fp32, or fp64 where dtype is fp64.

    Raises ``invalid_dtype`` for anything but f16, bf16, f32, f64.
    """
    check_dtype(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = matrix_names(model)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype if name in matrices else wide)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(wide)


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` if weights may have it; raises ``invalid_dtype``."""
    if dtype not in DTYPES.values():
        known = ", ".join(DTYPES)
        raise InvalidInputError(f"weights are {known}, not {dtype}", code="invalid_dtype")
    return dtype
