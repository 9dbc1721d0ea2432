"""Launching the CUDA kernels: the scan over 16-bit inputs, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kssm.ops.kssm_scan.cuda_program import compiler, program
from kssm.ops.kssm_scan.kernel_cut import Cut, RingTuning, Rows, TileTuning, processors
from kssm.ops.kssm_scan.kernel_launch import (
    Gradients,
    Scan,
    evenly_spaced,
    room_for_kept,
    room_for_output,
)
from kssm.ops.launch import blocks_of, on_device

_BLOCK = 64
"""Channels a program."""

_LINE = 128
"""Words of a token in shared memory."""

_WORD = ctypes.sizeof(ctypes.c_int32)


class Arguments(ctypes.Structure):
    """``struct Arguments`` of parts.cuh."""

    _fields_ = (
        ("streams", ctypes.c_void_p * 4),
        ("b", ctypes.c_void_p * 2),
        ("parameters", ctypes.c_void_p * 6),
        *((name, ctypes.c_void_p) for name in ("initial", "factor")),
        *((name, ctypes.c_void_p) for name in ("lengths", "offsets", "owner", "first")),
        *((name, ctypes.c_void_p) for name in ("maps", "states", "counter", "y", "kept", "last")),
        ("spacing", ctypes.c_int * 6),
        *((name, ctypes.c_int) for name in ("tokens", "chunks", "rows")),
    )


class GradientArguments(ctypes.Structure):
    """``struct Gradients`` of adjoint.cuh."""

    _fields_ = (
        ("dy", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("streams", ctypes.c_void_p * 4),
        ("b", ctypes.c_void_p * 2),
        ("parameters", ctypes.c_void_p),
        ("initial", ctypes.c_void_p),
        ("maps", ctypes.c_void_p),
        ("dy_spacing", ctypes.c_int),
        ("chunk_len", ctypes.c_int),
    )


class AllArguments(ctypes.Structure):
    """``struct Both`` of adjoint.cuh."""

    _fields_ = (("forward", Arguments), ("to", GradientArguments))


def fits(scan: Scan) -> bool:
    """Whether these kernels can do a scan on its device."""
    x = scan.x
    width = x.shape[-1] // scan.groups
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    same = narrow and all(t.dtype == x.dtype for t in scan.inputs)
    return same and width % _BLOCK == 0 and _usable(x.device)


def forward_by_cuda(
    scan: Scan, tuning: RingTuning | TileTuning, keep: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``kernel_launch.forward`` for a scan that ``fits``; ``keep`` is 1, 2, 4 or 8."""
    x = scan.x
    inputs, spacing = _aligned(*evenly_spaced(scan.inputs))
    y = room_for_output(x, scan.lengths)
    last = x.new_empty(scan.rows, x.shape[-1], 2, dtype=torch.float32)
    kept = room_for_kept(scan, keep)
    arguments = _arguments(scan, inputs, spacing, kept)
    arguments.y, arguments.last = y.data_ptr(), last.data_ptr()
    defines = _defines(scan, keep)
    with on_device(x.device):
        if isinstance(tuning, RingTuning):
            _walk(scan, tuning, defines, arguments)
        else:
            _tile(scan, tuning.keeping(keep), defines, arguments)
    return y, last, kept


def backward_by_cuda(
    scan: Scan, kept: Tensor, dy: Tensor, dfinal: Tensor, tuning: RingTuning
) -> Gradients:
    """``kernel_launch.backward`` for a scan that ``fits``."""
    x = scan.x
    batch, tokens, channels = x.shape
    given = (*scan.inputs[:4], dy.to(x.dtype), *scan.inputs[4:])
    inputs, spacing = _aligned(*evenly_spaced(given), streams=5)
    to_tokens = [room_for_output(t, scan.lengths) for t in scan.inputs[:4]]
    partial = (batch, tokens, scan.groups, channels // scan.groups // _BLOCK)
    to_b = [room_for_output(x, scan.lengths, partial, torch.float32) for _ in range(2)]
    cut = cut_back(scan, tuning)
    cuts = cut.chunks != 1
    maps = x.new_empty(cut.units if cuts else 0, channels, 4, dtype=torch.float32)
    make = x.new_empty if scan.offsets is None else x.new_zeros
    to_parameters = make(cut.units, 6, channels, dtype=torch.float32)
    to_initial = x.new_empty(scan.rows, channels, 2, dtype=torch.float32)
    dfinal = dfinal.contiguous()
    forward = _arguments(scan, (*inputs[:4], *inputs[5:]), (*spacing[:4], *spacing[5:]), kept)
    to = GradientArguments(
        dy=inputs[4].data_ptr(),
        last=dfinal.data_ptr(),
        streams=_addresses(to_tokens),
        b=_addresses(to_b),
        parameters=to_parameters.data_ptr(),
        initial=to_initial.data_ptr(),
        maps=maps.data_ptr(),
        dy_spacing=spacing[4],
        chunk_len=cut.chunk_len,
    )
    forward.chunks = cut.chunks
    rows = _place(forward, cut.rows(scan.lengths, scan.offsets if cuts else None), scan.offsets)
    with on_device(x.device):
        _walk_back(scan, tuning, cut, AllArguments(forward, to))
    del rows  # needed until here
    return Gradients(to_tokens, [t.sum(-1) for t in to_b], to_parameters.sum(0), to_initial)


def cut_back(scan: Scan, tuning: RingTuning) -> Cut:
    """The backward pass's cut: rows as they are where they are many, else chunks of them."""
    batch, tokens, channels = scan.x.shape
    blocks = channels // _BLOCK
    there = processors(scan.x.device)
    if scan.rows * blocks >= tuning.enough * there:
        return Cut(_BLOCK, blocks, scan.rows, 1, tokens)
    chunks = blocks_of(tuning.wanted * there, scan.rows * blocks)
    chunk_len = max(blocks_of(batch * tokens, scan.rows * chunks), tuning.shortest)
    packed = None if scan.offsets is None else scan.rows
    return Cut.fixed(scan.x.shape, (_BLOCK, blocks), blocks_of(chunk_len, 32) * 32, packed)


def _walk_back(scan: Scan, tuning: RingTuning, cut: Cut, arguments: AllArguments) -> None:
    """The chunks' maps, when rows are cut, and the gradients."""
    device = scan.x.device
    defines = _defines(scan, tuning.keep) | {"AHEAD": tuning.ahead}
    if cut.chunks != 1:
        shared = (tuning.ahead * 8 * _LINE + 32) * _WORD
        kernel = program("back_maps.cu", "back_maps_kernel", defines, shared, device)
        kernel.launch(cut.programs, 32, arguments)
    shared = (tuning.ahead * (tuning.keep * 5 * 32 + 2 * _BLOCK) + 3 * 32) * _WORD
    kernel = program("walk_back.cu", "walk_back_kernel", defines, shared, device)
    kernel.launch(cut.programs, 32, arguments)


def _defines(scan: Scan, keep: int | None) -> dict[str, int]:
    """What parts.cuh wants to know."""
    x = scan.x
    defines = {"D": x.shape[-1], "GROUPS": scan.groups, "HALF": int(x.dtype == torch.float16)}
    return defines | {"FACTOR": int(scan.token_dt is not None), "KEEP": keep or 0}


def _arguments(
    scan: Scan, inputs: Sequence[Tensor], spacing: Sequence[int], kept: Tensor | None
) -> Arguments:
    """Everything but where rows lie and where results go."""
    return Arguments(
        streams=_addresses(inputs[:4]),
        b=_addresses(inputs[4:]),
        parameters=_addresses(scan.parameters),
        initial=_address(scan.initial_state),
        factor=_address(scan.token_dt),
        kept=_address(kept),
        spacing=tuple(spacing),
        tokens=scan.x.shape[1],
        rows=scan.x.shape[0],
    )


def _walk(scan: Scan, tuning: RingTuning, defines: dict[str, int], arguments: Arguments) -> None:
    """One program for 64 channels of a row."""
    defines["AHEAD"] = tuning.ahead
    shared = (tuning.ahead * 8 * _LINE + 3 * 32) * _WORD
    kernel = program("walk.cu", "walk_kernel", defines, shared, scan.x.device)
    arguments.chunks = 1
    rows = _place(arguments, Rows(scan.lengths, None), scan.offsets)
    kernel.launch(scan.rows * (scan.x.shape[-1] // _BLOCK), 32, arguments)
    del rows  # needed until here


def _tile(scan: Scan, tuning: TileTuning, defines: dict[str, int], arguments: Arguments) -> None:
    """One program for 64 channels of ``tuning.tokens`` tokens."""
    x = scan.x
    channels = x.shape[-1]
    packed = None if scan.offsets is None else scan.rows
    cut = Cut.fixed(x.shape, (_BLOCK, channels // _BLOCK), tuning.tokens, packed)
    maps = cut.units * channels * 4 if tuning.every > 1 else 0
    counter = maps + cut.units * channels * 2
    board = torch.full((counter + 1,), -1, dtype=torch.int32, device=x.device)
    arguments.maps = board.data_ptr()
    arguments.states = board.data_ptr() + maps * _WORD
    arguments.counter = board.data_ptr() + counter * _WORD
    arguments.chunks = cut.chunks
    rows = _place(arguments, cut.rows(scan.lengths, scan.offsets), scan.offsets)
    defines |= {"WARPS": tuning.warps, "TOKENS": tuning.run, "UNROLL": tuning.unroll}
    defines |= {"RESIDENT": tuning.resident, "EVERY": tuning.every}
    shared = tile_bytes(tuning, defines["KEEP"], defines["FACTOR"])
    kernel = program("tile.cu", "tile_kernel", defines, shared, x.device)
    kernel.launch(cut.programs, 32 * tuning.warps, arguments)
    del rows  # needed until here


def tile_bytes(tuning: TileTuning, keep: int, factor: int) -> int:
    """Shared memory of a tile, laid out as at the beginning of its kernel."""
    tokens = tuning.tokens
    words = _LINE * tokens + (_LINE * tokens // keep if keep else 0)
    words += 4 * _BLOCK * tuning.warps + 2 * _BLOCK
    words += 2 * tokens + factor * tokens + 1
    return words * _WORD


def _place(arguments: Arguments, rows: Rows, offsets: Tensor | None) -> list[Tensor | None]:
    """Say where rows lie, as 64-bit numbers; the tensors returned must outlive the launch."""
    wide = [None if t is None else t.long() for t in rows._replace(offsets=offsets)]
    arguments.lengths, arguments.offsets, arguments.owner, arguments.first = map(_address, wide)
    return wide


def _usable(device: torch.device) -> bool:
    """Whether the device has asynchronous copies, and a compiler."""
    if device.type != "cuda" or compiler() is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _aligned(
    inputs: Sequence[Tensor], spacing: Sequence[int], streams: int = 4
) -> tuple[list[Tensor], tuple[int, ...]]:
    """The first ``streams`` with tokens at multiples of 16 bytes: copied if they are not."""
    found, steps = list(inputs), list(spacing)
    for i, tensor in enumerate(inputs[:streams]):
        if tensor.data_ptr() % 16 or steps[i] % 8:
            found[i] = tensor.clone(memory_format=torch.contiguous_format)
            steps[i] = tensor.shape[-1]
    return found, tuple(steps)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)
