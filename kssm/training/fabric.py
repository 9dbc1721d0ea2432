"""Where a run executes: one device or several ranks, by Lightning Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from kssm.errors import InvalidInputError

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import Tensor

    from kssm.training.config import RunConfig


def make_fabric(
    run: RunConfig, folder: Path, device: torch.device, devices: int = 1, *, spawn: bool = False
) -> Fabric:
    """Fabric for ``devices`` devices like ``device``; more than one train with DDP.

    Args:
        run: for its precision and whether it wants TensorBoard events (in ``folder``).
        folder: of the run.
        device: of a single rank, or the kind of all.
        devices: number of ranks on this machine.
        spawn: start ranks from a function (``fabric.launch(function)``) rather than by running
            the command line again.

    Raises:
        InvalidInputError: ``missing_dependency`` without the extra ``train``.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.loggers.logger import Logger
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger
        from lightning.fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        message = "training needs Lightning: pip install 'kssm[train]'"
        raise InvalidInputError(message, code="missing_dependency") from error
    try:
        loggers: list[Logger] = []
        if run.tensorboard:
            loggers.append(TensorBoardLogger(folder, name="", version="events"))
    except ImportError as error:
        message = "run.tensorboard needs TensorBoard: pip install 'kssm[train]'"
        raise InvalidInputError(message, code="missing_dependency") from error
    parallel = DDPStrategy(
        start_method="spawn" if spawn else "popen",
        gradient_as_bucket_view=True,
    )
    single = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(
        accelerator=device.type,
        devices=devices if devices > 1 else single,
        strategy=parallel if devices > 1 else "auto",
        precision="32-true" if run.precision == "32-true" else "bf16-mixed",
        loggers=loggers,
    )


class Pace:
    """Keeps host and device, and the ranks' clocks, together without ever draining the queue.

    The host may run ahead by the work between two ticks. So the thousands of small launches that
    make new series are hidden behind the steps before them.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._mark: torch.cuda.Event | None = None
        # Agreeing on the time by NCCL would wait for the device.
        shared = distributed.is_initialized()
        self._group: Any = distributed.new_group(backend="gloo") if shared else None

    def tick(self, clock: float) -> float:
        """Wait for the work launched before the last tick; returns the first rank's ``clock``."""
        if self._cuda:
            if self._mark is not None:
                self._mark.synchronize()
            self._mark = torch.cuda.Event()
            self._mark.record()
        if self._group is None:
            return clock
        shared = torch.tensor(clock, dtype=torch.float64)
        distributed.broadcast(shared, src=0, group=self._group)
        return float(shared)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in place and without waiting for the device."""
    if not distributed.is_initialized():
        return value
    distributed.all_reduce(value)
    return value.div_(distributed.get_world_size())
