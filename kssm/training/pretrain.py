"""Pretraining a forecaster: one GPU (or a patient CPU), resumable, bounded by time or steps."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from kssm.errors import InvalidInputError
from kssm.forecast import pretrained
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.models.kssm import KSSMBlock
from kssm.training.corpus import Corpus, CorpusConfig
from kssm.training.loss import Tokens, forecast_loss, read_loss, tokenise
from kssm.training.mixture import BatchSource, MixtureConfig
from kssm.training.optimizer import OptimizerConfig, Optimizers, scheduled_rate
from kssm.training.visibility import thin

Report = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """How long and how to train.

    Attributes:
        seconds: length of the whole run in training time (compilation aside), over all slices.
        steps: bound on optimiser steps, whichever comes first; 0 = none.
        slice_seconds: stop (resumably) after this much of it, 0 = run to the end.
        read_stride: one token in so many trains the head.
        thinned_share: share of batches with irregular sampling, told as dt.
        thinned_keep: share of the samples that such a batch keeps.
        seed: of weights and data.
        log_seconds: time between console lines.
        compile: compile the dense parts of the model.
    """

    seconds: float = 840.0
    steps: int = 0
    slice_seconds: float = 0.0
    read_stride: int = 2
    thinned_share: float = 0.1
    thinned_keep: float = 0.6875
    seed: int = 0
    log_seconds: float = 20.0
    compile: bool = True


@dataclass(frozen=True)
class PretrainConfig:
    """Everything a run depends on; one TOML table for each part."""

    model: ForecasterConfig = field(default_factory=ForecasterConfig)
    data: MixtureConfig = field(default_factory=MixtureConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path) -> PretrainConfig:
    """Read a TOML file; unknown keys raise ``invalid_config``."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"cannot read {path}: {error}", "invalid_config") from error
    return _build(PretrainConfig, tables)


def _build(kind: type[T], values: Any) -> T:
    """A dataclass from a TOML table, tables inside it included."""
    if not isinstance(values, dict):
        raise InvalidInputError(f"{kind.__name__}: expected a table", code="invalid_config")
    table = cast("dict[str, Any]", values)
    types = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in table.items():
        wanted = types.get(name)
        if isinstance(wanted, type) and is_dataclass(wanted):
            arguments[name] = _build(wanted, value)
        else:
            arguments[name] = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InvalidInputError(f"{kind.__name__}: {error}", "invalid_config") from error


class Trainer:
    """One run: model, data, optimisers and their progress."""

    def __init__(self, config: PretrainConfig, folder: Path, device: str, corpus: Path | None):
        self.config = config
        self.folder = folder
        self.device = torch.device(device)
        torch.manual_seed(config.run.seed)
        self.model = SignalForecaster(config.model).to(self.device)
        self.optimizers = Optimizers(self.model, config.optimizer)
        real = corpus and Corpus.read(corpus, device=device, config=config.corpus)
        self.source = BatchSource(config.data, real, seed=config.run.seed, device=device)
        self.choices = torch.Generator().manual_seed(config.run.seed + 1)
        self.loss = read_loss
        self.step = 0
        self.samples = 0
        self.elapsed = 0.0
        self.curve: list[dict[str, float]] = []
        if config.run.compile:
            self._compile()

    def _compile(self) -> None:
        # A length of series is a shape of its own: allow for all of them.
        dynamo.recompile_limit = 64
        for block in self.model.backbone.blocks:
            assert isinstance(block, KSSMBlock)
            block.before_scan = torch.compile(block.before_scan, dynamic=False)
            block.after_scan = torch.compile(block.after_scan, dynamic=False)
        self.loss = torch.compile(read_loss, dynamic=False)

    def warm_up(self) -> float:
        """Compile every shape of batch there is, changing nothing; returns the seconds it took."""
        start = time.perf_counter()
        data = self.config.data
        for shape in ((data.rows, data.length), (data.short_rows, data.short_length)):
            values = torch.randn(shape, device=self.device)
            for thinned in (False, True):
                for offset in range(self.config.run.read_stride):
                    seen = torch.ones_like(values, dtype=torch.bool)
                    self._loss(values, seen, thinned, offset)[0].backward()
        self.model.zero_grad(set_to_none=True)
        self._synchronise()
        return time.perf_counter() - start

    def run(self, report: Report) -> bool:
        """Train until the slice or the run ends; True when the run is complete."""
        run = self.config.run
        started, base = time.perf_counter(), self.elapsed
        logged = self.elapsed
        losses: list[Tensor] = []
        while not self._finished():
            losses.append(self._train_step())
            if len(losses) % 8 == 0:
                self._synchronise()  # bounds the queue of launched work
            self.elapsed = base + time.perf_counter() - started
            if self.elapsed - logged >= run.log_seconds:
                logged = self.elapsed
                self._log(losses, report)
                losses = []
            if run.slice_seconds and self.elapsed - base >= run.slice_seconds:
                break
        self._synchronise()
        if losses:
            self._log(losses, report)
        return self._finished()

    def run_steps(self, count: int) -> None:
        """Train for ``count`` optimiser steps, without reporting."""
        for _ in range(count):
            self._train_step()

    def save(self) -> None:
        """Write what resuming needs and the current weights as a checkpoint folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "source": self.source.state_dict(),
            "choices": self.choices.get_state(),
            "step": self.step,
            "samples": self.samples,
            "elapsed": self.elapsed,
            "curve": self.curve,
        }
        torch.save(state, self.folder / "resume.pt")
        pretrained.save(self.model, self.folder / "checkpoint")
        record = {"config": asdict(self.config), "curve": self.curve, "samples": self.samples}
        (self.folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")

    def resume(self) -> bool:
        """Continue from ``save`` when there is anything to continue from."""
        path = self.folder / "resume.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.source.load_state_dict(state["source"])
        self.choices.set_state(state["choices"])
        self.step, self.samples = state["step"], state["samples"]
        self.elapsed, self.curve = state["elapsed"], state["curve"]
        return True

    def _finished(self) -> bool:
        return self._progress() >= 1.0

    def _progress(self) -> float:
        run = self.config.run
        by_steps = self.step / run.steps if run.steps else 0.0
        return max(self.elapsed / run.seconds, by_steps)

    def _train_step(self) -> Tensor:
        run = self.config.run
        values, visible = self.source.next_batch()
        draw = torch.rand(2, generator=self.choices).tolist()
        thinned = draw[0] < run.thinned_share
        offset = int(draw[1] * run.read_stride)
        loss, plain = self._loss(values, visible, thinned, offset)
        loss.backward()
        rate = scheduled_rate(self.config.optimizer, self.step, self._progress())
        self.optimizers.step(rate)
        self.step += 1
        self.samples += values.numel()
        return plain.detach()

    def _loss(
        self, values: Tensor, visible: Tensor, thinned: bool, offset: int
    ) -> tuple[Tensor, Tensor]:
        reads = slice(offset, None, self.config.run.read_stride)
        kept = self._thin(values.shape) if thinned else None
        tokens: Tokens = tokenise(
            values, visible, self.config.model.head_horizon, reads=reads, kept=kept
        )
        with torch.autocast(self.device.type, torch.bfloat16):
            return forecast_loss(self.model, tokens, reads, self.loss)

    def _thin(self, shape: torch.Size) -> Tensor:
        keep = self.config.run.thinned_keep
        return thin(*shape, generator=self.choices, device=self.device, keep_range=(keep, keep))

    def _log(self, losses: list[Tensor], report: Report) -> None:
        mean = float(torch.stack(losses).nanmean())
        rate = self.samples / max(self.elapsed, 1e-9)
        point = {"seconds": self.elapsed, "step": self.step, "samples": self.samples, "loss": mean}
        self.curve.append(point)
        report(
            f"{self.elapsed:7.1f} s  step {self.step:6d}  {self.samples / 1e6:8.1f}M samples "
            f"({rate / 1e6:.2f}M/s)  loss {mean:.4f}"
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
