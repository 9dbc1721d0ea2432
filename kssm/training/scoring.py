"""A run's checkpoints on evaluation tasks, for its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kssm.evaluation.forecasts import forecast_task
from kssm.evaluation.report import report_task, summarise
from kssm.evaluation.tasks import Task, load_task, task_files
from kssm.forecast import pretrained
from kssm.training.pretrain import AVERAGED, CHECKPOINT

CONTEXT, BATCH_TOKENS = 16_384, 262_144


def load_tasks(folder: str | Path) -> list[Task]:
    """Every task of a folder; raises ``invalid_task``."""
    return [load_task(file) for file in task_files(Path(folder))]


def score_run(
    folder: Path, tasks: Sequence[Task], device: torch.device | str
) -> dict[str, dict[str, Any]]:
    """The summary (``kssm.evaluation.report``) of each checkpoint that a run has written."""
    found = [name for name in (CHECKPOINT, AVERAGED) if (folder / name).is_dir()]
    return {name: score_checkpoint(folder / name, tasks, device) for name in found}


def score_checkpoint(
    checkpoint: str | Path, tasks: Sequence[Task], device: torch.device | str
) -> dict[str, Any]:
    """Geometric means relative to seasonal naive, calibration and every task's scores."""
    model = pretrained.load(checkpoint, device)
    horizon = model.config.head_horizon
    return summarise(
        [
            report_task(
                task,
                forecast_task(model, task, context_length=CONTEXT, batch_tokens=BATCH_TOKENS),
                horizon,
            )
            for task in tasks
        ]
    )
