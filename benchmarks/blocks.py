"""Training speed and memory of one block, ours beside Mamba's, at equal parameters.

    python -m benchmarks.blocks [--save] [--widths 512 1024] [--lengths 2048 8192] [--only NAME ...]

Every block is its layer with norm and residual, weights and activations in bf16 (what their authors
keep in fp32 stays so). All run as they are, without torch.compile: ours with their kernels, Mamba's
with those of mamba-ssm and causal-conv1d; what is not installed is left out. A peer is measured
with residual sum and norm in one kernel, as in its authors' models, and "_plain" with PyTorch's;
ratios are to the better of both. Each of our blocks has the parameters of the Mamba-2 block of the
same width: its feed-forward layer is sized for that.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import median_ms
from benchmarks.report import Row, finish, table
from kssm.models import KSSMConfig
from kssm.models.kssm import KSSMBlock
from kssm.models.kssm_matrix import KSSMMatrixBlock, KSSMMatrixConfig
from kssm.models.stack import Block

TOKENS = 196_608
"""Three rows of the longest length."""

OURS = ("kssm", "kssm_matrix", "kssm_matrix_wide")
PEERS = ("mamba", "mamba2", "mamba3")
PLAIN = tuple(f"{name}_plain" for name in PEERS)
EVERY = [*OURS, *PEERS, *PLAIN]


class AddNorm(nn.Module):
    """A peer's layer as its authors stack it: one kernel adds the last layer's result to the
    residual stream and norms the sum."""

    def __init__(self, width: int, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.layer = layer

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
        y, residual = module.rms_norm_fn(x, self.weight, None, residual=residual, prenorm=True)
        return self.layer(y), residual


class Plain(nn.Module):
    """x + layer(norm(x)) in PyTorch."""

    def __init__(self, width: int, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + self.layer(F.rms_norm(x, x.shape[-1:], self.weight)),)


class Own(nn.Module):
    """A block of ours without its state."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.block(x, None, None, None)[0],)


def build(name: str, width: int, dtype: torch.dtype) -> nn.Module:
    """The block called ``name``, weights in ``dtype``; raises ImportError without its package.

    What a layer's authors keep in fp32 stays in fp32.
    """
    if name in (*PEERS, *PLAIN):
        file, kind = {
            "mamba": ("mamba_simple", "Mamba"),
            "mamba2": ("mamba2", "Mamba2"),
            "mamba3": ("mamba3", "Mamba3"),
        }[name.removesuffix("_plain")]
        layer: Any = getattr(importlib.import_module(f"mamba_ssm.modules.{file}"), kind)
        frame = Plain if name in PLAIN else AddNorm
        return frame(width, layer(d_model=width, dtype=dtype), dtype)
    wanted = mamba2_parameters(width)
    if name == "kssm":
        config = KSSMConfig(width, 1, d_inner=width, rank=max(16, width // 16))
        return Own(fitted(KSSMBlock, config, wanted)).to(dtype)
    sizes = {"d_inner": width, "pairs": 32} if name == "kssm_matrix" else {"d_inner": 2 * width}
    options = {"head_dim": 64, "pairs": 64, **sizes}
    return Own(fitted(KSSMMatrixBlock, KSSMMatrixConfig(width, 1, **options), wanted)).to(dtype)


def fitted(kind: Callable[[Any], Block], config: Any, wanted: int) -> Block:
    """The block whose feed-forward layer brings it to ``wanted`` parameters, if any is needed."""
    with torch.device("meta"):
        least = count(kind(replace(config, d_mlp=0)))
    hidden = max(0, round((wanted - least) / (3 * config.d_model) / 64)) * 64
    return kind(replace(config, d_mlp=hidden))


def mamba2_parameters(width: int) -> int:
    """Parameters of a Mamba-2 block with its norm: expand 2, heads of 64, state 128."""
    inner, heads, filtered = 2 * width, 2 * width // 64, 2 * width + 2 * 128
    return (
        width * (inner + filtered + heads) + 5 * filtered + 3 * heads + inner * (width + 1) + width
    )


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def prepared(name: str, width: int) -> nn.Module:
    """The block as it is measured; raises ImportError without its package."""
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        return build(name, width, torch.float32)
    return build(name, width, torch.bfloat16).cuda()


def training_step(block: nn.Module, width: int, batch: int, tokens: int) -> Callable[[], None]:
    """Forward and backward of one block, with gradients of its inputs and its parameters."""
    device = next(block.parameters()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    streams = 2 if isinstance(block, AddNorm) else 1
    shape = (streams, batch, tokens, width)
    inputs = [x.requires_grad_() for x in torch.randn(shape, device=device, dtype=dtype).unbind()]
    leaves = [*inputs, *block.parameters()]
    incoming = list(torch.randn(shape, device=device, dtype=dtype).unbind())

    def run() -> None:
        outputs = cast("tuple[Tensor, ...]", block(*inputs))
        torch.autograd.grad(outputs, leaves, incoming, allow_unused=True)

    return run


def measure(name: str, block: nn.Module, width: int, batch: int, tokens: int, repeats: int) -> Row:
    """One line: tokens a second and peak memory of a training step."""
    device = next(block.parameters()).device
    run = training_step(block, width, batch, tokens)
    row: Row = {"block": name, "width": width, "batch": batch, "tokens": tokens}
    row["parameters"] = count(block)
    milliseconds = median_ms(run, device, repeats, queued=2)
    row["ms"] = milliseconds
    row["tokens_per_s"] = round(batch * tokens / milliseconds * 1e3)
    row["peak_mb"] = peak_mb(run, device)
    return row


def peak_mb(run: Callable[[], object], device: torch.device) -> float | None:
    """Memory above what is there before, in MB."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--only", nargs="+", default=EVERY, choices=EVERY)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 2048, 65_536])
    parser.add_argument("--total", type=int, default=TOKENS, help="tokens of a batch")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    for width in options.widths:
        found = width_rows(options.only, width, options.lengths, options.total, options.repeats)
        rows += [with_ratios(row, found) for row in found]
    print(table(rows))
    finish("blocks", device, rows, save=options.save)


def width_rows(
    names: Sequence[str], width: int, lengths: Sequence[int], total: int, repeats: int
) -> list[Row]:
    """One line a length and a block that is installed."""
    rows: list[Row] = []
    for name in names:
        try:
            block = prepared(name, width)
        except ImportError:
            continue
        sizes = [(max(1, total // length), length) for length in lengths]
        rows += [measure(name, block, width, *size, repeats) for size in sizes]
    return rows


def with_ratios(row: Row, rows: Sequence[Row]) -> Row:
    """``row`` with speed and memory as ratios to every peer at the same length."""
    row = dict(row)
    for peer in PEERS:
        names = (peer, f"{peer}_plain")
        alike = [o for o in rows if o["block"] in names and o["tokens"] == row["tokens"]]
        row[f"speed/{peer}"] = _ratio(row, alike, "tokens_per_s", max)
        row[f"memory/{peer}"] = _ratio(row, alike, "peak_mb", min)
    return row


def _ratio(
    row: Row, others: Sequence[Row], key: str, best: Callable[[Sequence[float]], float]
) -> float | None:
    """``row``'s number over the best of the others'."""
    mine, theirs = row[key], [o[key] for o in others]
    numbers = [n for n in theirs if isinstance(n, int | float)]
    return mine / best(numbers) if isinstance(mine, int | float) and numbers else None


if __name__ == "__main__":
    main()
