"""The kernel of all layers, ``layers.cu``: its weights, its memory and its launch.

It is for fp16 products on GPUs of compute capability 9.0, and for models of up to 256 columns.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from kssm.forecast.fused.kernel_call import Call
from kssm.forecast.fused.weights import Sizes, Weights
from kssm.ops.kssm_scan.cuda_program import CudaError, Program, program
from kssm.ops.kssm_scan.kernel_cut import processors

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("layers.cu")
_ROWS = 64
"""Rows of a program."""

_STAGES = 4
"""Pieces of weights at hand."""

_SIDE = 64
"""Columns of a tile of weights: 128 bytes."""

_LOW = 112
"""Columns of the selection that the kernel computes."""

_PIECE_BYTES = 16384
_OWN_BYTES = 18 * 16 * 128


class Arguments(ctypes.Structure):
    """``struct Arguments`` of layers_parts.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("pieces", "channels", "x", "hidden")),
        *((name, ctypes.c_void_p) for name in ("slots", "dt", "table", "kept")),
        ("eps", ctypes.c_float),
        ("group_eps", ctypes.c_float),
        ("rows", ctypes.c_int),
    )


def fits(sizes: Sizes, kind: torch.dtype) -> bool:
    """Whether the kernel has a form for these sizes."""
    groups = sizes.d_inner // sizes.group
    return (
        kind == torch.float16
        and sizes.d_model == 256
        and sizes.group == _SIDE
        and sizes.taps == 4
        and sizes.rank == 32
        and groups <= 8
        and sizes.d_mlp % _SIDE == 0
        and sizes.head_hidden % _SIDE == 0
    )


def with_pieces(weights: Weights) -> Weights:
    """The same with what ``run_layers`` takes, where there is a kernel for them."""
    device = weights.embed.device
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    if not (able and fits(weights.sizes, weights.kind)):
        return weights
    try:
        _kernel(weights)
    except CudaError as error:
        _log.warning("the kernel of all layers is not used: %s", error)
        return weights
    return replace(weights, pieces=pieces_of(weights))


def run_layers(weights: Weights, x: Tensor, hidden: Tensor, call: Call) -> None:
    """Take embedded samples ``x`` [room, 256] through all layers to the head's hidden units.

    ``hidden`` [room, HEAD] fp16; both have room for 64 rows a program. Queued on the current
    stream. The weights have their pieces.
    """
    sizes, rows = weights.sizes, len(call.values)
    assert weights.pieces is not None
    programs = min(triton.cdiv(rows, _ROWS), 2 * processors(x.device))
    kept = torch.empty(programs, 32 + sizes.d_inner // 16, 128, 4, device=x.device)
    tensors = (weights.pieces, weights.channels, x, hidden, call.slots, call.dt, call.table, kept)
    addresses = (tensor.data_ptr() for tensor in tensors)
    arguments = Arguments(*addresses, sizes.eps, sizes.group_eps, rows)
    _kernel(weights).launch(programs, 128, arguments)


def _kernel(weights: Weights) -> Program:
    sizes = weights.sizes
    defines = {
        "DI": sizes.d_inner,
        "HIDDEN": sizes.d_mlp,
        "LAYERS": sizes.layers,
        "HEAD": sizes.head_hidden,
        "STAGES": _STAGES,
    }
    shared = _STAGES * (_PIECE_BYTES + 8) + _OWN_BYTES + 16 * _ROWS * 4
    return program(str(_SOURCE), "layers_kernel", defines, shared, weights.embed.device)


def pieces_of(weights: Weights) -> Tensor:
    """The matrices of all layers in the order of their use, [pieces, 8192] fp16."""
    return torch.stack(list(_pieces(weights)))


def _pieces(weights: Weights) -> Iterator[Tensor]:
    inner, hidden = weights.sizes.d_inner, weights.sizes.d_mlp
    order = _order(2 * inner, weights.embed.device)
    for layer in range(weights.sizes.layers):
        token, gate = weights.normed_in[layer].index_select(0, order).split(inner)
        select = weights.w_select[layer, :_LOW].index_select(1, order[:inner])
        ups = weights.w_up[layer].index_select(1, order[:inner])
        out = weights.w_out[layer].index_select(1, order[:inner])
        for first in range(0, inner, _SIDE):
            yield from _columns(token[first : first + _SIDE])
            yield _piece(select[:, first : first + _SIDE])
        for first in range(0, inner, _SIDE):
            yield from _columns(gate[first : first + _SIDE])
            alpha, omega, dt = ups[:, first : first + _SIDE]
            yield _piece(torch.cat((alpha, omega), 1), F.pad(dt, (0, _SIDE - dt.shape[1])))
        for first in range(0, inner, _SIDE):
            yield from _sums(out[:, first : first + _SIDE])
        gate, value = weights.normed_mlp_in[layer].split(hidden)
        for first in range(0, hidden, _SIDE):
            for half in (first, first + _SIDE // 2):
                cut = slice(half, half + _SIDE // 2)
                yield from _columns(torch.cat((gate[cut], value[cut])))
            yield from _sums(weights.w_mlp_out[layer, :, first : first + _SIDE])
    for first in range(0, weights.sizes.head_hidden, _SIDE):
        yield from _columns(weights.normed_hidden[first : first + _SIDE])


def _order(channels: int, device: torch.device) -> Tensor:
    """Which channel stands where: a thread's columns 0, 1, 8, 9 of sixteen are neighbours."""
    place = torch.arange(channels, device=device)
    return place // 16 * 16 + place % 8 // 2 * 4 + place % 16 // 8 * 2 + place % 2


def _columns(matrix: Tensor) -> Iterator[Tensor]:
    """64 outputs of a product with 256 inputs [64, 256]: two pieces of two tiles."""
    tiles = matrix.split(_SIDE, 1)
    yield _piece(*tiles[:2])
    yield _piece(*tiles[2:])


def _sums(matrix: Tensor) -> Iterator[Tensor]:
    """What 64 inputs add to 256 outputs [256, 64]: two pieces."""
    for half in matrix.split(2 * _SIDE):
        yield _piece(half)


def _piece(*tiles: Tensor) -> Tensor:
    """Tiles [R, 64] one after another, [8192]; of a row's eights, number i lies at i ^ row % 8."""
    flat = torch.cat([_swizzled(tile) for tile in tiles])
    return F.pad(flat, (0, _PIECE_BYTES // flat.element_size() - len(flat)))


def _swizzled(tile: Tensor) -> Tensor:
    row = torch.arange(len(tile), device=tile.device)[:, None]
    place = torch.arange(8, device=tile.device) ^ row % 8
    eights = tile.unflatten(1, (8, 8))
    return eights.gather(1, place[..., None].expand_as(eights)).flatten()
