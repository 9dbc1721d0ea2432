"""Launching the Triton kernels of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.ops.kssm_scan.kernel_adjoint import backward_summary_kernel
from kssm.ops.kssm_scan.kernel_backward import backward_kernel
from kssm.ops.kssm_scan.kernel_cut import Cut, Tuning
from kssm.ops.kssm_scan.kernel_forward import forward_kernel, forward_summary_kernel
from kssm.ops.launch import on_device

_LANES = 32


class Scan(NamedTuple):
    """Everything both passes read: token inputs, parameters, and what is optional."""

    inputs: Sequence[Tensor]  # alpha, omega, dt, x [B, T, D], b_re, b_im [B, T, G]
    parameters: Sequence[Tensor]  # six [D]
    token_dt: Tensor | None
    lengths: Tensor | None
    offsets: Tensor | None  # [rows + 1] of packed rows
    initial_state: Tensor | None

    @property
    def x(self) -> Tensor:
        return self.inputs[3]

    @property
    def groups(self) -> int:
        return self.inputs[4].shape[-1]

    @property
    def rows(self) -> int:
        """Sequences."""
        return self.x.shape[0] if self.offsets is None else len(self.offsets) - 1

    @property
    def factor_row(self) -> tuple[int, ...]:
        """Spacing of token_dt, when there is one."""
        return () if self.token_dt is None else (1,)

    def cut(self, tuning: Tuning) -> Cut:
        """This scan's cut under a tuning."""
        packed = None if self.offsets is None else self.rows
        return Cut.plan(self.x.shape, self.groups, tuning, self.x.device, packed)

    def options(self, cut: Cut, share: int, lanes: Sequence[Tensor]) -> dict[str, int | bool]:
        """Compile-time arguments that every kernel takes.

        ``share``: channels a warp; ``lanes``: the kernel's [B, T, D] inputs.
        """
        return {
            "GROUPS": self.groups,
            "WIDTH": self.x.shape[-1] // self.groups,
            "BLOCK_D": cut.block_d,
            "EXACT": exact(self.inputs),
            "PAIRED": min(share, cut.block_d) > _LANES and all(_paired(t) for t in lanes),
            "num_warps": max(1, cut.block_d // share),
        }

    def summary(self, cut: Cut) -> Tensor | None:
        """Room for the chunks' summaries, when there are chunks."""
        if cut.chunks == 1:
            return None
        return self.x.new_empty(cut.units, self.x.shape[-1], 4, dtype=torch.float32)


def forward(scan: Scan, tuning: Tuning, keep: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y, last state, the states before every ``keep`` tokens for the backward pass)."""
    x = scan.x
    _, tokens, channels = x.shape
    tuning = tuning.keeping(keep)
    cut = scan.cut(tuning)
    inputs, rows = evenly_spaced(scan.inputs)
    options = scan.options(cut, tuning.share, inputs[:4])
    rows = _in_words(rows, 4, options)
    options |= {"ROWS": (*rows, *scan.factor_row), "UNROLL": tuning.unroll}
    options["AHEAD"] = tuning.ahead
    y = room_for_output(x, scan.lengths)
    final = x.new_empty(scan.rows, channels, 2, dtype=torch.float32)
    kept = room_for_kept(scan, keep)
    summary = scan.summary(cut)
    sizes = (tokens, cut.chunks, cut.chunk_len, 1)
    optional = (scan.token_dt, *cut.rows(scan.lengths, scan.offsets))
    with on_device(x.device):
        if summary is not None:
            forward_summary_kernel[(cut.programs,)](
                *inputs, *optional, *scan.parameters[:4], summary, *sizes, **options
            )
        forward_kernel[(cut.programs,)](
            *inputs, *optional, *scan.parameters, scan.initial_state, summary,
            y, kept, final, *sizes, KEEP=keep or 1, **options,
        )  # fmt: skip
    return y, final, kept


def room_for_kept(scan: Scan, keep: int | None) -> Tensor | None:
    """Room for the states before every ``keep`` tokens of each row."""
    if keep is None:
        return None
    batch, tokens, channels = scan.x.shape
    places = batch * -(-tokens // keep) if scan.offsets is None else tokens // keep + scan.rows
    return scan.x.new_empty(places, 2, channels, dtype=torch.float32)


class Gradients(NamedTuple):
    """The backward pass's results, in fp32 where they are sums."""

    tokens: list[Tensor]  # of alpha, omega, dt, x, in their dtypes
    b: list[Tensor]  # of b_re, b_im: [B, T, G]
    parameters: Tensor  # [6, D]
    initial_state: Tensor  # [rows, D, 2]


def backward(scan: Scan, kept: Tensor, dy: Tensor, dfinal: Tensor, tuning: Tuning) -> Gradients:
    """Gradients from those of y [B, T, D] and of the last state [rows, D, 2].

    ``tuning.unroll`` is the number of tokens that one kept state stands for.
    """
    x = scan.x
    batch, tokens, channels = x.shape
    cut = scan.cut(tuning)
    given = (*scan.inputs[:4], dy, *scan.inputs[4:])
    inputs, rows = evenly_spaced(given)
    options = scan.options(cut, tuning.share, inputs[:5])
    rows = _in_words(rows, 5, options)
    to_tokens = [room_for_output(t, scan.lengths) for t in scan.inputs[:4]]
    spans = cut.blocks // scan.groups
    if cut.block_d >= 2 * (channels // scan.groups):
        spans = channels // scan.groups // tuning.share
    partial = (batch, tokens, scan.groups, spans)
    to_b = [room_for_output(x, scan.lengths, partial, torch.float32) for _ in range(2)]
    make = x.new_empty if scan.offsets is None else x.new_zeros
    to_parameters = make(cut.units, 6, channels, dtype=torch.float32)
    to_initial = x.new_empty(scan.rows, channels, 2, dtype=torch.float32)
    summary = scan.summary(cut)
    sizes = (tokens, cut.chunks, cut.chunk_len, 1)
    optional = (scan.token_dt, *cut.rows(scan.lengths, scan.offsets))
    with on_device(x.device):
        if summary is not None:
            backward_summary_kernel[(cut.programs,)](
                *inputs[:3], inputs[4], *optional, *scan.parameters, summary, *sizes,
                ROWS=_negative(*rows[:3], rows[4], *scan.factor_row),
                UNROLL=tuning.unroll, AHEAD=tuning.ahead, **options,
            )  # fmt: skip
        backward_kernel[(cut.programs,)](
            *inputs, *optional, *scan.parameters, kept, dfinal.contiguous(), summary,
            *to_tokens, *to_b, to_parameters, to_initial, *sizes,
            ROWS=(*rows, *scan.factor_row), KEEP=tuning.unroll, WARP_D=tuning.share, **options,
        )  # fmt: skip
    return Gradients(to_tokens, [t.sum(-1) for t in to_b], to_parameters.sum(0), to_initial)


def evenly_spaced(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Tensors [B, T, N] whose tokens are evenly spaced in memory, and that spacing.

    Slices of a wider projection qualify as they are; anything else is copied.
    """
    kept: list[Tensor] = []
    rows: list[int] = []
    for tensor in tensors:
        batch, tokens, width = tensor.shape
        even = batch == 1 or tensor.stride(0) == tokens * tensor.stride(1)
        if tokens > 1 and even and (width == 1 or tensor.stride(2) == 1) and tensor.stride(1) > 0:
            kept.append(tensor)
            rows.append(tensor.stride(1))
        else:
            kept.append(tensor.contiguous())
            rows.append(width)
    return kept, tuple(rows)


def _paired(tensor: Tensor) -> bool:
    """Whether two neighbouring channels are always one aligned word."""
    even = tensor.shape[-1] % 2 == 0 and tensor.stride(1) % 2 == 0
    return tensor.dtype == torch.bfloat16 and even and tensor.data_ptr() % 4 == 0


def _in_words(rows: tuple[int, ...], lanes: int, options: dict[str, int | bool]) -> tuple[int, ...]:
    """The first ``lanes`` spacings in words of two, when the kernel reads those."""
    return (*(row // 2 for row in rows[:lanes]), *rows[lanes:]) if options["PAIRED"] else rows


def _negative(*rows: int) -> tuple[int, ...]:
    return tuple(-row for row in rows)


def exact(inputs: Sequence[Tensor]) -> bool:
    """Whether full fp32 accuracy is worth its cost: 16-bit pre-activations do not carry it."""
    return torch.float32 in (inputs[0].dtype, inputs[2].dtype)


def room_for_output(
    like: Tensor,
    lengths: Tensor | None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Memory for a kernel's output; zeros when rows end early, for the kernels stop there."""
    make = like.new_empty if lengths is None else like.new_zeros
    return make(tuple(like.shape if shape is None else shape), dtype=dtype or like.dtype)
