"""Largest relative errors of the scans against float64, values and gradients.

    python -m benchmarks.ops_accuracy [--save] [--tokens N]

The float64 run gets the very numbers of the narrow one. An error is the largest difference over
the largest number of the exact result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import ops_accuracy_matrix as matrix
from benchmarks.report import Row, Value, finish, table
from kssm.ops.kssm_scan import ScanParameters, kssm_scan

NAMES = ("alpha", "omega", "dt", "x", "b_re", "b_im", *ScanParameters._fields, "initial_state")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"one row": 1, "three rows": 3, "packed": 5}
"""Sequences in a problem; rows have an odd number of tokens, packed ones differ in length."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print two tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--tokens", type=int, default=None)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = options.tokens or (65_536 if device.type == "cuda" else 1024)
    rows = [errors(name, layout, tokens, 128, device) for layout in LAYOUTS for name in DTYPES]
    states = [
        matrix_errors(name, layout, tokens, device) for layout in matrix.LAYOUTS for name in DTYPES
    ]
    for part in (rows, states):
        print(table([{k: _short(v) for k, v in row.items()} for row in part]))
    finish("ops_accuracy", device, rows + states, save=options.save)


def _short(value: Value) -> Value:
    return f"{value:.0e}" if isinstance(value, float) else value


def errors(name: str, layout: str, tokens: int, channels: int, device: torch.device) -> Row:
    """Of the element-wise scan for one dtype, by result; ``tokens`` in all sequences together."""
    sequences = LAYOUTS[layout]
    offsets, rows, length = None, sequences, tokens
    if layout == "packed":
        rows, offsets = 1, split(tokens, sequences).to(device)
    elif sequences > 1:
        length = tokens // sequences // 2 * 2 + 1
    inputs = draw(rows, length, sequences, channels, DTYPES[name], device)
    exact = gradients([t.double() for t in inputs], offsets)
    found = gradients(inputs, offsets)
    row: Row = {"scan": "element-wise", "dtype": name, "layout": layout}
    row |= {"tokens": length, "channels": channels}
    return row | {key: worst(found[key], value) for key, value in exact.items()}


def matrix_errors(name: str, layout: str, tokens: int, device: torch.device) -> Row:
    """Of the matrix-state scan, whose longest row has ``tokens``."""
    problem = matrix.draw(layout, tokens, DTYPES[name], device)
    exact, found = matrix.gradients(problem.double()), matrix.gradients(problem)
    row: Row = {"scan": "matrix-state", "dtype": name, "layout": layout, "tokens": tokens}
    row |= {key: worst(found[key], value) for key, value in exact.items()}
    return row | {"initial_state": row.get("initial_state")}  # the table's rows have the same keys


def split(tokens: int, sequences: int) -> Tensor:
    """Where sequences of very different lengths begin, and the end of the last."""
    ends = [tokens * k * k // sequences**2 + k % 2 for k in range(1, sequences)]
    return torch.tensor([0, *ends, tokens])


def draw(
    batch: int,
    tokens: int,
    sequences: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """Inputs, parameters, state and the loss's two weights; decays from 1e-4 to 1 a step."""
    generator = torch.Generator().manual_seed(0)
    groups = max(1, channels // 64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    streams = [normal(batch, tokens, channels) for _ in range(4)]
    shared = [normal(batch, tokens, groups) for _ in range(2)]
    spread = torch.linspace(0, 1, channels)
    parameters = [
        1.0 - 7.0 * spread,
        normal(channels),
        torch.logspace(-1, 1, channels).flip(0),
        -5.0 * spread,
        normal(channels),
        normal(channels),
    ]
    state = [normal(sequences, channels, 2)]
    weights = [normal(batch, tokens, channels), normal(sequences, channels, 2)]
    narrow = [t.to(device, dtype) for t in (*streams, *shared)]
    return [*narrow, *(t.to(device) for t in (*parameters, *state, *weights))]


def gradients(tensors: Sequence[Tensor], offsets: Tensor | None) -> dict[str, Tensor]:
    """y, the last state and all gradients of a weighted sum of both."""
    leaves = [t.detach().requires_grad_() for t in tensors[:13]]
    alpha, omega, dt, x, b_re, b_im, *rest = leaves
    parameters = ScanParameters(*rest[:6])
    y, final = kssm_scan(
        *(alpha, omega, dt, x, b_re, b_im),
        parameters,
        initial_state=rest[6],
        cu_seqlens=offsets,
    )
    loss = (y.to(tensors[13].dtype) * tensors[13]).sum() + (final * tensors[14]).sum()
    found = torch.autograd.grad(loss, leaves)
    return {"y": y.detach(), "final": final.detach()} | dict(zip(NAMES, found, strict=True))


def worst(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact number."""
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


if __name__ == "__main__":
    main()
