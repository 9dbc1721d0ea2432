"""Pretraining a forecaster: one GPU or several (or a patient CPU), resumable, bounded by time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo

from kssm.checkpoint import load_weights
from kssm.forecast import pretrained
from kssm.forecast.forecaster import SignalForecaster
from kssm.models.kssm import KSSMBlock
from kssm.training.averaging import WeightAverage
from kssm.training.config import PretrainConfig
from kssm.training.corpus import Corpus
from kssm.training.fabric import Pace, mean_over_ranks
from kssm.training.loss import LossSums, Objective, Tokens, tokenise
from kssm.training.mixture import BatchSource, TrainingBatch
from kssm.training.optimizer import Optimizers, scheduled_rate
from kssm.training.record import describe_run, write_record
from kssm.training.visibility import thin

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Report = Callable[[str], None]

TICK = 8  # steps between two looks at the clock
RESUME_FILE, CHECKPOINT, AVERAGED = "resume.pt", "checkpoint", "averaged"


DENSE: Mapping[type[nn.Module], tuple[str, ...]] = MappingProxyType(
    {KSSMBlock: ("before_scan", "after_scan")}
)
"""Methods around a block's scan, which has kernels of its own, that are worth compiling.

The matrix-state block has kernels for everything between its products."""


class Trainer:
    """One run: model, data, optimisers and their progress.

    Every rank of ``fabric`` holds the same weights and trains on series of its own; the gradient
    is that of all their batches joined. The first rank reports and writes the files:
    ``resume.pt``, ``run.json``, and the folders ``checkpoint`` and ``averaged``.
    """

    def __init__(
        self,
        config: PretrainConfig,
        folder: Path,
        fabric: Fabric,
        corpus: Path | None = None,
        commit: str | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.fabric = fabric
        self.device = fabric.device
        self._pace = Pace(self.device)
        run = config.run
        torch.manual_seed(run.seed)
        self.model = self.new_model()
        if run.init:
            load_weights(self.model, pretrained.locate(run.init))
        self.model.to(self.device)
        objective = self.new_objective()
        if run.compile:
            _compile(objective)
        self._objective = fabric.setup_module(objective)
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.average = WeightAverage(self.model, config.average) if config.average.share else None
        real = corpus and Corpus.read(corpus, device=self.device, config=config.corpus)
        rank = fabric.global_rank
        self.source = BatchSource(config.data, real, seed=run.seed, device=self.device, rank=rank)
        self.step = 0
        self.samples = 0
        self.elapsed = 0.0
        self.curve: list[dict[str, float]] = []
        self.description = describe_run(config, self.device, fabric.world_size, commit)

    def new_model(self) -> SignalForecaster:
        """The model to train, with fresh weights."""
        return SignalForecaster(self.config.model)

    def new_objective(self) -> Objective:
        """What its loss is."""
        return Objective(self.model)

    def tokens(self, batch: TrainingBatch, reads: slice, kept: Tensor | None) -> Tokens:
        """What the model reads of a batch (``tokenise``)."""
        horizon = self.config.model.head_horizon
        return tokenise(batch.values, batch.visible, horizon, reads=reads, kept=kept)

    def warm_up(self, report: Report = lambda _: None) -> float:
        """Compile every shape of batch there is, changing nothing; returns the seconds it took."""
        start = time.perf_counter()
        data = self.config.data
        for shape in ((data.rows, data.length), (data.short_rows, data.short_length)):
            values = torch.randn(shape, device=self.device)
            batch = TrainingBatch(values, torch.ones_like(values, dtype=torch.bool))
            for thinned in (False, True):
                for offset in range(self.config.run.read_stride):
                    self.fabric.backward(self._sums(batch, thinned, offset).weighted)
                report(f"{shape} thinned={thinned}: {time.perf_counter() - start:.0f} s")
        self.model.zero_grad(set_to_none=True)
        self._synchronise()
        return time.perf_counter() - start

    def run(self, report: Report) -> bool:
        """Train until the slice or the run ends; True when the run is complete."""
        run = self.config.run
        started, base = time.perf_counter(), self.elapsed
        logged = saved = self.elapsed
        losses: list[Tensor] = []
        while not self._finished():
            losses.append(self.train_step())
            if self.step % TICK:
                continue
            self.elapsed = self._pace.tick(base + time.perf_counter() - started)
            if self.elapsed - logged >= run.log_seconds:
                logged = self.elapsed
                self._log(losses, report)
                losses = []
            if run.slice_seconds and self.elapsed - base >= run.slice_seconds:
                break
            if run.save_seconds and self.elapsed - saved >= run.save_seconds:
                saved = self.elapsed
                self.save()
        self._synchronise()
        self.elapsed = self._pace.tick(base + time.perf_counter() - started)
        if losses:
            self._log(losses, report)
        return self._finished()

    def train_step(self) -> Tensor:
        """One batch and one update; the mean loss of this rank's batch."""
        run = self.config.run
        draw = random.Random(f"{run.seed}/{self.step}/choices")  # noqa: S311  simulation
        thinned = draw.random() < run.thinned_share
        return self.update(self.source.next_batch(), thinned, draw.randrange(run.read_stride))

    def update(self, batch: TrainingBatch, thinned: bool, offset: int) -> Tensor:
        """Train on a batch, irregularly sampled if ``thinned``, read from token ``offset`` on."""
        sums = self._sums(batch, thinned, offset)
        # Each rank's share of the mean over all ranks, which DDP takes of the gradients.
        weight = mean_over_ranks(sums.weight.detach()).clamp_min(1.0)
        self.fabric.backward(sums.weighted / weight)
        self.optimizers.step(scheduled_rate(self.config.optimizer, self.step, self._progress()))
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self.samples += batch.values.numel() * self.fabric.world_size
        return (sums.plain / sums.known.clamp_min(1)).detach()

    def save(self) -> None:
        """Write what resuming needs, the record, and the weights as checkpoint folders."""
        if not self.fabric.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{RESUME_FILE}.partial"
        torch.save(self._state(), partial)
        partial.replace(self.folder / RESUME_FILE)
        pretrained.save(self.model, self.folder / CHECKPOINT)
        if self.average is not None:
            pretrained.save(self.averaged(self.average), self.folder / AVERAGED)
        write_record(self.folder, self._record())

    def resume(self) -> bool:
        """Continue from ``save`` if there is anything to continue from; ranks may have changed."""
        path = self.folder / RESUME_FILE
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.source.load_state_dict(state["source"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.samples = state["step"], state["samples"]
        self.elapsed, self.curve = state["elapsed"], state["curve"]
        return True

    def averaged(self, average: WeightAverage) -> SignalForecaster:
        """A forecaster with the averaged weights."""
        forecaster = self.new_model()
        forecaster.load_state_dict(average.weights(self.model))
        return forecaster

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "source": self.source.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "elapsed": self.elapsed,
            "curve": self.curve,
        }

    def _record(self) -> Mapping[str, Any]:
        progress = {"seconds": self.elapsed, "step": self.step, "samples": self.samples}
        return {**self.description, **progress, "curve": self.curve}

    def _finished(self) -> bool:
        return self._progress() >= 1.0

    def _progress(self) -> float:
        run = self.config.run
        by_steps = self.step / run.steps if run.steps else 0.0
        return max(self.elapsed / run.seconds, by_steps)

    def _sums(self, batch: TrainingBatch, thinned: bool, offset: int) -> LossSums:
        reads = slice(offset, None, self.config.run.read_stride)
        kept = self._thin(batch.values.shape) if thinned else None
        return self._objective(self.tokens(batch, reads, kept), reads)

    def _thin(self, shape: torch.Size) -> Tensor:
        keep = self.config.run.thinned_keep
        seed = f"{self.config.run.seed}/{self.fabric.global_rank}/{self.step}/thin"
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(62))  # noqa: S311
        return thin(*shape, generator=generator, device=self.device, keep_range=(keep, keep))

    def _log(self, losses: list[Tensor], report: Report) -> None:
        mean = float(torch.stack(losses).nanmean())
        rate = self.samples / max(self.elapsed, 1e-9)
        point = {"seconds": self.elapsed, "step": self.step, "samples": self.samples, "loss": mean}
        self.curve.append(point)
        self.fabric.log_dict({"loss": mean, "samples": self.samples, "rate": rate}, self.step)
        if self.fabric.is_global_zero:
            report(
                f"{self.elapsed:7.1f} s  step {self.step:6d}  {self.samples / 1e6:8.1f}M samples "
                f"({rate / 1e6:.2f}M/s)  loss {mean:.4f}"
            )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _compile(objective: Objective) -> None:
    # A length of series is a shape of its own: allow for all of them.
    dynamo.recompile_limit = 64
    # The pieces are compiled one by one inside DDP: there is no graph to split by its buckets.
    dynamo.optimize_ddp = False
    for block in objective.model.backbone.blocks:
        for name in DENSE.get(type(block), ()):
            setattr(block, name, torch.compile(getattr(block, name), dynamic=False))
    objective.loss = torch.compile(objective.loss, dynamic=False)
