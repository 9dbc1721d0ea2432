"""A small task with ragged series and a missing value."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kssm.evaluation.tasks import Task


def toy_task() -> Task:
    """Two series of 40 and 30 samples, two windows of five samples each."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=70).cumsum().astype(np.float32)
    values[33] = np.nan
    return Task("toy", 5, 2, 7, values, np.array([0, 40, 70]))


def write_task(path: Path, task: Task | None = None, **changes: object) -> Path:
    """A task file; ``changes`` replace fields, None leaves one out."""
    toy = task or toy_task()
    fields: dict[str, object] = {
        "values": toy.values,
        "offsets": toy.offsets,
        "prediction_length": toy.prediction_length,
        "windows": toy.windows,
        "season": toy.season,
        "name": toy.name,
    }
    np.savez(path, **{k: v for k, v in (fields | changes).items() if v is not None})  # pyright: ignore[reportArgumentType]
    return path
