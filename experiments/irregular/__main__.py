"""Forecasts of one signal sampled in several ways, relative to those from the complete series.

    python -m experiments.irregular --tasks TASKS --output RESULT.json

TASKS is a folder of evaluation tasks. Of each task so many windows are drawn (seed 0) that their
histories, at most 1,024 samples each, have about ``--samples`` samples. Whatever the sampling, the
forecast is compared with the same samples of the complete series, over the task's own horizon.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.irregular.sampling import Samples, complete, dropped, faster, slower, tokens
from kssm.evaluation.scores import quantile_loss
from kssm.evaluation.tasks import Floats, Task, load_task, task_files
from kssm.forecast import pretrained
from kssm.forecast.batch import batches
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster

CONTEXT = 1024
BATCH_TOKENS = 16_384

Sampling = Callable[[Floats, np.random.Generator], Samples]
Tokens = tuple[Floats, Floats]


def samplings(all_read: bool) -> dict[str, tuple[Sampling, bool]]:
    """Name -> (how the signal is sampled, whether fast samples are thinned)."""
    usual: dict[str, tuple[Sampling, bool]] = {
        "30% lost": (partial(_lost, share=0.3), True),
        "half the rate": (partial(_slower, factor=2), True),
        "twice the rate": (partial(_faster, factor=2), True),
        "four times the rate": (partial(_faster, factor=4), True),
    }
    unthinned: dict[str, tuple[Sampling, bool]] = {
        "twice the rate, every sample read": (partial(_faster, factor=2), False),
        "four times the rate, every sample read": (partial(_faster, factor=4), False),
    }
    return usual | unthinned if all_read else usual


def main() -> None:
    parser = argparse.ArgumentParser(description="Skill with irregular sampling.")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=40_000, help="of history a task")
    parser.add_argument("--all-read", action="store_true", help="also without thinning")
    parser.add_argument("--only", nargs="*", help="names of tasks' files, without .npz")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = pretrained.load(arguments.model, arguments.device)
    result: dict[str, object] = {
        "model": arguments.model,
        "fingerprint": model.fingerprint,
        "commit": _commit(),
        "relative_to": "complete series, CRPS (mean weighted quantile loss)",
    }
    found: dict[str, dict[str, float]] = {}
    for path in task_files(arguments.tasks):
        if not arguments.only or path.stem in arguments.only:
            task = load_task(path)
            found[task.name] = compare(model, task, arguments.samples, arguments.all_read)
            print(task.name, {k: round(v, 3) for k, v in found[task.name].items()}, flush=True)
            arguments.output.write_text(json.dumps(result | {"tasks": found}, indent=1) + "\n")


def compare(model: SignalForecaster, task: Task, samples: int, all_read: bool) -> dict[str, float]:
    """Windows used, the complete series' CRPS, and every sampling's CRPS relative to it."""
    histories, targets = draw(task, samples)
    score = partial(crps, model, targets=targets)
    whole = [tokens(complete(history)) for history in histories]
    usual = score(whole, np.zeros(len(whole), dtype=np.int64))
    found: dict[str, float] = {"windows": len(histories), "CRPS": usual}
    for name, (sampling, thinned) in samplings(all_read).items():
        generator = np.random.default_rng(1)
        sampled = [sampling(history, generator) for history in histories]
        read = [tokens(samples, thinned=thinned) for samples in sampled]
        late = np.array([samples.late for samples in sampled])
        found[name] = 1.0 if _same(read, whole) else score(read, late) / usual
    return found


def draw(task: Task, samples: int) -> tuple[list[Floats], Floats]:
    """Histories of at most ``CONTEXT`` samples and their targets [n, horizon].

    Up to 15 of the oldest samples are left out at random: thinned copies of a row are read every
    16th sample at the rarest, and no sampling should profit from when that is.
    """
    contexts = [past[-CONTEXT:].astype(np.float64) for past in task.contexts()]
    typical = float(np.mean([len(past) for past in contexts]))
    count = min(len(contexts), max(20, int(samples / typical)))
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.choice(len(contexts), count, replace=False))
    spared = generator.integers(0, 16, count) * (
        np.array([len(contexts[i]) for i in chosen]) >= CONTEXT
    )
    histories = [contexts[i][cut:] for i, cut in zip(chosen, spared, strict=True)]
    return histories, task.targets()[chosen]


def crps(
    model: SignalForecaster, read: Sequence[Tokens], late: NDArray[np.int64], *, targets: Floats
) -> float:
    """Summed quantile loss over summed absolute targets [n, horizon]."""
    quantiles = forecast(model, read, late, targets.shape[1])
    known = np.isfinite(targets)
    return float(quantile_loss(targets, quantiles).sum() / np.abs(targets[known]).sum())


def forecast(
    model: SignalForecaster, read: Sequence[Tokens], late: NDArray[np.int64], horizon: int
) -> NDArray[np.float32]:
    """Quantiles [n, 9, horizon] of the samples after the complete series' last one."""
    out = np.empty((len(read), len(LEVELS), horizon), dtype=np.float32)
    for rows in batches([len(values) for values, _ in read], BATCH_TOKENS):
        values, steps, lengths = _padded([read[row] for row in rows], model.device)
        state = model.prefill(values, model.initial_state(len(rows)), lengths, steps).state
        ahead = model.forecast(state, horizon + int(late[rows].max()), LEVELS).cpu().numpy()
        for index, row in enumerate(rows):
            out[row] = np.nan_to_num(ahead[index, late[row] : late[row] + horizon]).T
    return out


def _padded(
    read: Sequence[Tokens], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(values) for values, _ in read], device=device)
    shape = (len(read), int(lengths.max()))
    values = torch.full(shape, torch.nan, dtype=torch.float64)
    steps = torch.ones(shape, dtype=torch.float64)
    for row, (samples, dt) in enumerate(read):
        values[row, : len(samples)] = torch.from_numpy(samples)
        steps[row, : len(dt)] = torch.from_numpy(dt)
    return values.to(device), steps.to(device), lengths


def _same(read: Sequence[Tokens], whole: Sequence[Tokens]) -> bool:
    """Whether the model reads the very tokens of the complete series, as after exact thinning."""
    return all(
        np.array_equal(values, usual, equal_nan=True) and np.array_equal(steps, ones)
        for (values, steps), (usual, ones) in zip(read, whole, strict=True)
    )


def _lost(series: Floats, generator: np.random.Generator, share: float) -> Samples:
    return dropped(series, share, generator)


def _slower(series: Floats, generator: np.random.Generator, factor: int) -> Samples:
    del generator
    return slower(series, factor)


def _faster(series: Floats, generator: np.random.Generator, factor: int) -> Samples:
    del generator
    return faster(series, factor)


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # not run from a repository
    return done.stdout.strip()


if __name__ == "__main__":
    main()
