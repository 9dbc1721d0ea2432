"""Sequences packed one after the other against the same sequences on their own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan import ScanParameters, kssm_scan
from tests.ops.problems import DEVICE, NAMES, Problem, make_problem, named, worst

SIZES = [[5], [3, 0, 9, 1], [0, 70, 33]]
BACKENDS = ["reference", "chunked"]


def packed(
    sizes: list[int], *, initial: bool = True, channels: int = 6, groups: int = 2
) -> tuple[Problem, torch.Tensor]:
    """A problem of sum(sizes) tokens, and where its sequences begin."""
    problem = make_problem(1, sum(sizes), channels, groups, token_dt=True)
    generator = torch.Generator().manual_seed(1)
    shape = (len(sizes), channels, 2)
    start = torch.randn(shape, generator=generator).bfloat16().double() if initial else None
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    return replace(problem, initial_state=start, final_weight=weight), offsets


def gradients(problem: Problem, offsets: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """y, the last states and all gradients of the packed scan."""
    leaves = [t.detach().requires_grad_() for t in (*problem.inputs, *problem.parameters)]
    start = problem.initial_state
    start = None if start is None else start.detach().requires_grad_()
    y, final = kssm_scan(
        **named(leaves[:6]),
        parameters=ScanParameters(*leaves[6:]),
        token_dt=problem.token_dt,
        initial_state=start,
        cu_seqlens=offsets,
        backend=backend,  # pyright: ignore[reportArgumentType]
    )
    wanted = leaves if start is None else [*leaves, start]
    loss = (y.to(problem.y_weight.dtype) * problem.y_weight).sum()
    found = torch.autograd.grad(loss + (final * problem.final_weight).sum(), wanted)
    names = [*NAMES, *ScanParameters._fields, "initial_state"]
    return {"y": y, "final": final} | dict(zip(names, found, strict=False))


def alone(problem: Problem, offsets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same from one scan a sequence, in float64."""
    leaves = [t.detach().requires_grad_() for t in (*problem.inputs, *problem.parameters)]
    start = problem.initial_state
    start = torch.zeros_like(problem.final_weight) if start is None else start
    start = start.detach().requires_grad_()
    ys, finals = [], []
    for row, (first, end) in enumerate(itertools.pairwise(offsets.tolist())):
        state = start[row : row + 1]
        if end > first:
            y, state = kssm_scan(
                **named([t[:, first:end] for t in leaves[:6]]),
                parameters=ScanParameters(*leaves[6:]),
                token_dt=problem.token_dt[:, first:end],
                initial_state=state,
                backend="reference",
            )
            ys.append(y)
        finals.append(state)
    y, final = torch.cat(ys, 1), torch.cat(finals)
    loss = (y * problem.y_weight).sum() + (final * problem.final_weight).sum()
    found = torch.autograd.grad(loss, [*leaves, start])
    names = [*NAMES, *ScanParameters._fields, "initial_state"]
    return {"y": y, "final": final} | dict(zip(names, found, strict=True))


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_the_sequences(backend, sizes, initial):
    problem, offsets = packed(sizes, initial=initial)
    expected, found = alone(problem, offsets), gradients(problem, offsets, backend)
    for name, value in found.items():
        assert worst(value, expected[name]) < 1e-11, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.usefixtures("poisoned")
def test_packed_sequences_in_triton(dtype, kind):
    pytest.importorskip("triton")
    problem, offsets = packed([3, 0, 9, 1])
    expected = alone(problem, offsets)
    found = gradients(problem.to(dtype, DEVICE), offsets.to(DEVICE, kind), "triton")
    for name, value in found.items():
        assert worst(value, expected[name]) < (1e-5 if dtype == torch.float32 else 1e-2), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_neighbours_hold_changes_no_bit(backend):
    problem, offsets = packed([4, 6, 5])
    other = [t.clone() for t in problem.inputs]
    for entry in other:
        entry[:, :4], entry[:, 10:] = float("nan"), 7.0
    runs = [
        kssm_scan(
            **named(inputs),
            parameters=problem.parameters,
            token_dt=problem.token_dt,
            initial_state=problem.initial_state,
            cu_seqlens=offsets,
            backend=backend,
        )
        for inputs in (problem.inputs, other)
    ]
    assert torch.equal(runs[0][0][:, 4:10], runs[1][0][:, 4:10])
    assert torch.equal(runs[0][1][1], runs[1][1][1])


@pytest.mark.parametrize(
    ("offsets", "lengths", "code"),
    [
        ([0, 3], None, "invalid_cu_seqlens"),
        ([1, 5], None, "invalid_cu_seqlens"),
        ([0, 4, 2, 5], None, "invalid_cu_seqlens"),
        ([0], None, "invalid_cu_seqlens"),
        ([0, 5], [5], "invalid_cu_seqlens"),
        ([0.0, 5.0], None, "wrong_dtype"),
    ],
)
def test_wrong_offsets_are_refused(offsets, lengths, code):
    problem = make_problem(1, 5, 4, 2)
    with pytest.raises(InvalidInputError) as caught:
        kssm_scan(
            **named(problem.inputs),
            parameters=problem.parameters,
            lengths=None if lengths is None else torch.tensor(lengths),
            cu_seqlens=torch.tensor(offsets),
        )
    assert caught.value.code == code


def test_packed_rows_need_one_batch_row():
    problem = make_problem(2, 5, 4, 2)
    with pytest.raises(InvalidInputError, match="cu_seqlens"):
        kssm_scan(
            **named(problem.inputs),
            parameters=problem.parameters,
            cu_seqlens=torch.tensor([0, 5]),
        )
