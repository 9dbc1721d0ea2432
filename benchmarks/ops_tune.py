"""Tune the element-wise scan for this GPU and keep the best cuts in the tuning file.

    python -m benchmarks.ops --tune [--output FILE] [--jobs N] [--repeats N]

Candidates are compiled by ``--jobs`` processes first, then timed one after the other. Without
``--output`` the user's file is written (see kssm/ops/tuning.py).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_time import queued_ms
from benchmarks.ops_scan import copy_rate, counted_bytes
from benchmarks.peers_scan import Case
from benchmarks.report import Row, finish, table
from kssm.ops.kssm_scan import ScanParameters
from kssm.ops.kssm_scan.kernel import scan_triton
from kssm.ops.kssm_scan.kernel_choice import BACKWARD_NAME, FORWARD_NAME, AnyTuning, encode
from kssm.ops.kssm_scan.kernel_cut import RingTuning, TileTuning, Tuning
from kssm.ops.tuning import ShapeClass, save, user_file

SHAPES = (
    (64, 4096, 1024),
    (8, 4096, 1024),
    (1, 65_536, 1024),
    (256, 512, 512),
    (1, 4096, 1024),
)
ALWAYS_CUT = 10**6
WALKS = (Tuning(block_d=64, ahead=4, enough=0),)
RINGS = (RingTuning(3), RingTuning(4), RingTuning(6))
TILES = tuple(
    TileTuning(4, run, unroll, resident, every)
    for run, unroll, resident in ((24, 4, 4), (32, 4, 3), (16, 4, 6))
    for every in (1, 4, 8)
)
BACK = (Tuning(block_d=512, warps=8, enough=0), Tuning(block_d=64, enough=0))
BACK_RINGS = (RingTuning(3), RingTuning(4), RingTuning(6))
BACK_CHUNKS = tuple(RingTuning(4, wanted=wanted) for wanted in (4, 8, 16))
FEW = 16_384
"""Rows times channels up to which walks are cut in time too, and not left whole."""

Pair = tuple[AnyTuning, Tuning | RingTuning]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune every shape, write the file, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--output", type=Path, default=user_file())
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cuda-only", action="store_true", help="leave Triton's kernels out")
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache and end")
    options = parser.parse_args(arguments)
    device = torch.device("cuda", torch.cuda.current_device())
    if options.jobs > 1:
        compile_all(options.jobs, options.cuda_only)
    if options.compile_only:
        return
    copy = copy_rate(device, options.repeats)
    rows: list[Row] = []
    for shape in SHAPES:
        case = Case(*shape, device)
        first, second = candidates(case, options.cuda_only)
        pairs: list[Pair] = [(tuning, second[0]) for tuning in first]
        lines, forward = timed(case, "forward", pairs, copy, options.repeats)
        pairs = [(forward[0], tuning) for tuning in second]
        more, both = timed(case, "both", pairs, copy, options.repeats)
        print(table([*lines, *more]), flush=True)
        rows += [*lines, *more]
        best = {FORWARD_NAME: encode(forward[0]), BACKWARD_NAME: encode(both[1])}
        shape_class = ShapeClass.of("16bit", case.batch, case.tokens, case.channels)
        if options.output is not None:
            device_name = torch.cuda.get_device_name(device)
            save(options.output, device_name, {k: {shape_class: c} for k, c in best.items()})
    finish("ops_tune", device, rows, save=options.save)


def candidates(
    case: Case, cuda_only: bool = False
) -> tuple[list[AnyTuning], list[Tuning | RingTuning]]:
    """What is tried for (forward, backward)."""
    few = case.batch * case.channels <= FEW
    first: list[AnyTuning] = list(TILES if few else (*RINGS, *TILES[:1]))
    second: list[Tuning | RingTuning] = list(BACK_CHUNKS if few else BACK_RINGS)
    if not cuda_only:
        first += cut(WALKS) if few else WALKS
        second += cut(BACK) if few else BACK
    return first, second


def timed(
    case: Case, kind: str, pairs: Sequence[Pair], copy: float, repeats: int
) -> tuple[list[Row], Pair]:
    """The table's lines of some candidates, fastest first, and the fastest."""
    found = [(time_ms(case, kind, pair, repeats), pair) for pair in pairs]
    found.sort(key=lambda entry: entry[0])
    return [line(case, kind, pair, ms, copy) for ms, pair in found], found[0][1]


def cut(tunings: Iterable[Tuning]) -> Iterable[Tuning]:
    """The same, cut in time."""
    for tuning in tunings:
        for wanted in (8, 16):
            yield replace(tuning, enough=ALWAYS_CUT, wanted=wanted)


def runs(case: Case, kind: str, pair: Pair) -> Callable[[], object]:
    """What is timed: the scan as in inference ("forward"), or with all its gradients ("both").

    With "kept" the forward pass of the latter.
    """
    shared = [case.tokens_by(case.groups) for _ in range(2)]
    tokens = [*(case.tokens_by(case.channels) for _ in range(4)), *shared]
    parameters = [case.draw(case.channels, dtype=torch.float32) for _ in range(6)]
    leaves = [t.requires_grad_(kind != "forward") for t in (*tokens, *parameters)]
    dy = case.tokens_by(case.channels)

    def scan() -> Any:
        alpha, omega, dt, x, b_re, b_im, *rest = leaves
        own = ScanParameters(*rest)
        return scan_triton(alpha, omega, dt, x, b_re, b_im, own, tuning=pair)[0]

    return scan if kind != "both" else lambda: torch.autograd.grad(scan(), leaves, dy)


def time_ms(case: Case, kind: str, pair: Pair, repeats: int) -> float:
    """Median duration; infinite when the GPU cannot run it."""
    try:
        return queued_ms(runs(case, kind, pair), case.device, repeats)
    except RuntimeError:
        return float("inf")


def compile_all(jobs: int, cuda_only: bool) -> None:
    """Fill Triton's cache: every candidate on a small batch, in processes of their own."""
    work: list[tuple[int, str, Pair]] = []
    for kind in ("forward", "both", "kept"):
        for rows, _, channels in SHAPES:
            case = Case(rows, 1024, channels, torch.device("cuda"))
            first, second = candidates(case, cuda_only)
            if kind == "both":
                work += [(channels, kind, (RINGS[0], one_count(t))) for t in second]
            else:
                work += [(channels, kind, (one_count(t), BACK_RINGS[0])) for t in first]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        list(pool.map(compile_one, list(dict.fromkeys(work)), chunksize=1))


def one_count(tuning: Any) -> Any:
    """The same kernels whatever the number of chunks."""
    return tuning if isinstance(tuning, TileTuning) else replace(tuning, wanted=16)


def compile_one(work: tuple[int, str, Pair]) -> None:
    """Run one candidate once."""
    channels, kind, pair = work
    with contextlib.suppress(RuntimeError):
        runs(Case(2, 1024, channels, torch.device("cuda")), kind, pair)()


def line(case: Case, kind: str, pair: Pair, ms: float, copy: float) -> Row:
    """One line of the table."""
    share = counted_bytes(case, kind) / (ms * 1e-3) / copy
    text = str(pair[0] if kind == "forward" else pair[1])
    sizes: Row = {"batch": case.batch, "tokens": case.tokens, "channels": case.channels}
    return {"pass": kind, **sizes, "cut": text, "ms": ms, "share_of_copy": share}


if __name__ == "__main__":
    main()
