"""How scans are cut: blocks of several groups, and what the tuning file says."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from kssm.ops.kssm_scan import kssm_scan
from tests.ops.problems import DEVICE, make_problem, named, worst

pytest.importorskip("triton")

from kssm.ops.kssm_scan.kernel_choice import BACKWARD, FORWARD, decode, encode
from kssm.ops.kssm_scan.kernel_cut import Cut, RingTuning, TileTuning, Tuning, block_channels

kernel = importlib.import_module("kssm.ops.kssm_scan.kernel")
ON_GPU = DEVICE == "cuda"
SHAPE = (3, 300, 256, 4) if ON_GPU else (2, 9, 16, 4)
SHARE = 64 if ON_GPU else 4
WIDE = Tuning(block_d=2 * SHARE, warps=2, enough=0)
CUT = replace(WIDE, enough=10**6, wanted=10**6, shortest=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tuning", [WIDE, CUT])
@pytest.mark.usefixtures("poisoned")
def test_blocks_of_several_groups(monkeypatch, tuning, dtype):
    check(monkeypatch, (tuning, tuning), SHAPE, dtype)


def check(monkeypatch, tunings, shape, dtype, **options):
    """Values and all gradients against the float64 reference."""
    scan = kernel.scan_triton
    monkeypatch.setattr(kernel, "scan_triton", lambda *args: scan(*args, tuning=tunings))
    problem = make_problem(*shape, initial=True, **options)
    expected = problem.gradients("reference")
    found = problem.to(dtype, DEVICE).gradients("triton")
    for name, value in expected.items():
        assert worst(found[name], value) < (1e-5 if dtype == torch.float32 else 1e-2), name


def test_blocks_stay_in_groups_or_hold_whole_warps_of_them():
    assert block_channels(1024, 16, 512, 8) == (512, 2)
    assert block_channels(1024, 16, 64, 1) == (64, 16)
    assert block_channels(320, 5, 512, 8) == (64, 5)  # 512 does not divide 320
    assert block_channels(96, 2, 64, 1) == (64, 2)  # part empty
    assert block_channels(45, 9, 64, 1) == (8, 9)


def test_packed_rows_have_room_for_a_chunk_each():
    cut = Cut.plan((1, 1000, 64), 1, CUT, torch.device("cpu"), 10)
    assert cut.units == 1000 // cut.chunk_len + 10
    offsets = torch.tensor([0, 0, 1, 400, 400, 401, 402, 403, 900, 999, 1000])
    rows = cut.rows(None, offsets)
    assert rows.table is not None
    assert rows.first is not None
    counts = (-(-offsets.diff() // cut.chunk_len)).clamp(min=1)
    assert torch.equal(rows.first.diff(), counts)
    assert len(rows.table) == cut.units
    used = int(counts.sum())
    assert torch.equal(rows.table[:used], torch.arange(10).repeat_interleave(counts))


def test_groups_of_kept_states_are_whole():
    assert FORWARD.keeping(None) is FORWARD
    assert Tuning(unroll=4, ahead=4).keeping(8) == Tuning(unroll=8, ahead=2)
    assert Tuning(unroll=4, ahead=1).keeping(8) == Tuning(unroll=8, ahead=1)
    assert Tuning(unroll=8).keeping(4) == Tuning(unroll=8)


@pytest.mark.parametrize("tuning", [FORWARD, WIDE, TileTuning(2, 16, every=8), RingTuning(6)])
def test_a_tuning_survives_the_file(tuning):
    assert decode(encode(tuning)) == tuning


def test_the_tuning_file_decides(monkeypatch):
    asked: list[str] = []

    def tuned(name, _device, shape):
        asked.append(f"{name} {shape}")
        return encode(TileTuning(2, 4) if name.endswith("forward") else BACKWARD)

    choice = importlib.import_module("kssm.ops.kssm_scan.kernel_choice")
    monkeypatch.setattr(choice, "tuned", tuned)
    problem = make_problem(2, 9, 8, 2).to(torch.bfloat16, DEVICE)
    y, _ = kssm_scan(**named(problem.inputs), parameters=problem.parameters, backend="triton")
    assert asked == ["kssm_scan.forward 16bit/4/3", "kssm_scan.backward 16bit/4/3"]
    assert worst(y, problem.run("reference")[0]) < 1e-2
