"""The GPU path: ``SignalForecaster.step_`` as a few fused Triton kernels.

Scaler, features, embedding and score are one kernel, each phase of a layer is one, the head is two.
The torch code of the forecaster stays the reference and the fallback. See docs/gpu.md.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kssm.forecast.fused.weights import Sizes, Weights, can_pack, kind_for, versions_of
from kssm.ops.launch import runs_triton, triton_installed

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster
    from kssm.forecast.native.reading import Contest, Sources
    from kssm.models import State

__all__ = ["FusedModel"]


_MOST_LEVELS = 256
"""Sets of levels whose tables are kept on the device."""


class FusedModel:
    """Runs the fused kernels for one forecaster and owns their copy of its weights.

    The copy is made on the first call and again whenever a weight was written to, or the model
    loaded or moved; ``forget`` drops it. A row is computed alike, bit for bit, whatever rows are
    in its batch; the size of the batch may change the order of sums.
    """

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._seen: list[int] | None = None
        self._failed = False
        self._levels: dict[tuple[float, ...], Tensor] = {}
        self._tables = WeakTensorKeyDictionary()  # entry -> (addresses, the same on the device)

    def __reduce__(self) -> tuple[type[FusedModel], tuple[()]]:
        """Copies and pickles start empty: they belong to another model."""
        return FusedModel, ()

    def forget(self) -> None:
        """Drop the copy of the weights; kernels that failed get another chance."""
        self._weights = self._seen = None
        self._failed = False

    def step_(
        self,
        model: SignalForecaster,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor | None,
    ) -> tuple[Tensor, Tensor] | None:
        """``SignalForecaster.step_``: (tail [N], healthy [N]); None where torch must do the work.

        Never waits for the device, so that it can be captured in a CUDA graph; one that was
        captured reads this arena and these weights as long as both live.
        """
        weights = self.current(model) if values.is_cuda and len(values) else None
        table = None if weights is None else self._table(model, arena)
        if weights is None or table is None:
            return None
        launch = importlib.import_module("kssm.forecast.fused.kernel_launch")
        try:
            return launch.step(weights, values, slots, dt, table)
        except Exception:
            self._failed = True  # of a compiler or a driver: torch does what follows
            raise

    def read(
        self,
        sources: Sources,
        horizon: int,
        levels: tuple[float, ...],
        direct: int,
        contest: Contest | None = None,
        slots: Tensor | None = None,
    ) -> Tensor | None:
        """As ``kssm.forecast.native.reading.read_quantiles``, as one kernel; waits for nothing.

        None where the rows are not on a GPU. Levels are copied there on their first use.
        """
        if not all(self.can_read(blocks) for blocks, _ in sources):
            return None
        device = sources[0][0].device
        reading = importlib.import_module("kssm.forecast.fused.kernel_read")
        table = self._levels.get(levels)
        if table is None or table.device != device:
            if len(self._levels) >= _MOST_LEVELS:
                self._levels.clear()
            table = self._levels[levels] = reading.level_table(levels, device)
        return reading.read(sources, horizon, table, direct, contest, slots)

    @staticmethod
    def can_read(blocks: Tensor) -> bool:
        """Whether ``read`` takes such forecasts."""
        return runs_triton(blocks)

    def keep_(
        self, values: Tensor, dt: Tensor | None, arena: State, slots: Tensor, healthy: Tensor
    ) -> bool:
        """Put healthy rows' samples into the arena's blocks; False where torch must do the work."""
        if not _has_blocks(arena):
            return False
        thinning = importlib.import_module("kssm.forecast.fused.kernel_thinning")
        thinning.keep(values, dt, slots, healthy, arena["clock"], arena["block"])
        return True

    def ended_run(
        self, arena: State, slots: Tensor, clock: Tensor, factor: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """(samples, steps, slots) [N] of runs of ``factor`` samples that end at ``clock`` [N].

        Slots are -1 for rows whose clock is another. None where torch must do the work.
        """
        if not _has_blocks(arena):
            return None
        thinning = importlib.import_module("kssm.forecast.fused.kernel_thinning")
        return thinning.ended_run(slots, clock, factor, arena["clock"], arena["block"])

    def current(self, model: SignalForecaster) -> Weights | None:
        """The copy of the model's weights; None where torch must do the work."""
        device = model.embed.weight.device
        if self._failed or model.training or device.type != "cuda" or not _can_run(device):
            return None
        seen = versions_of(model)
        if seen != self._seen:
            self._seen = seen
            sizes = Sizes.of(model) if can_pack(model) else None
            self._weights = sizes and Weights.pack(model, sizes, kind_for(model))
        return self._weights

    def _table(self, model: SignalForecaster, arena: State) -> Tensor | None:
        """Addresses of the arena's entries on the device; None if one is not as the kernels need.

        It lives as long as the arena's first entry does.
        """
        entries = [arena[name] for name in model.row_spec()]
        if not all(entry.is_contiguous() for entry in entries):
            return None
        addresses = [entry.data_ptr() for entry in entries]
        kept = self._tables.get(entries[0])
        if kept is None or kept[0] != addresses:
            kept = (addresses, torch.tensor(addresses, device=entries[0].device))
            self._tables[entries[0]] = kept
        return kept[1]


def _has_blocks(arena: State) -> bool:
    """Whether Triton can work on the blocks of thinned copies."""
    block, clock = arena["block"], arena["clock"]
    return block.is_cuda and block.is_contiguous() and clock.is_contiguous() and triton_installed()


@functools.cache
def _can_run(device: torch.device) -> bool:
    """Whether the GPU has what the kernels use: dependent launches, 200 kB of shared memory."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10) and triton_installed()
