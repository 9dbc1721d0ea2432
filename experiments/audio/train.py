"""Train the audio forecaster on one device: ``python -m experiments.audio.train --help``.

The averaged weights are written every minute and at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from experiments.audio.corpora import HELD_OUT, SPEAKERS, spoken_digits, synthesised
from experiments.audio.losses import lose, losses
from experiments.audio.mixture import Mixture, Pool
from kssm.audio.config import AudioConfig
from kssm.audio.model import AudioNetwork
from kssm.audio.pretrained import load, save
from kssm.checkpoint import load_weights
from kssm.training.averaging import AverageConfig, WeightAverage
from kssm.training.optimizer import OptimizerConfig, Optimizers, scheduled_rate

WEIGHTS: Final = {
    "next": 1.0,
    "next_spread": 0.3,
    "outlook": 0.5,
    "outlook_all": 1.0,
    "outlook_spread": 0.2,
}
_EXPORT_EVERY_S: Final = 60.0
_EARLY: Final = (1, 5, 20)


class Trainer:
    """The network, its optimisers and its average, and what it is fed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        torch.manual_seed(arguments.seed)
        self.network = _network(arguments.start).to(self.device)
        self.mixture = make_mixture(arguments, self.device)
        self.generator = torch.Generator(self.device).manual_seed(arguments.seed + 1)
        config = OptimizerConfig(learning_rate=arguments.lr, warmup_steps=200)
        self.optimizers = Optimizers(self.network, config)
        self.average = WeightAverage(self.network, AverageConfig())
        self.steps = 0

    def step(self, progress: float) -> dict[str, Tensor]:
        """One update when ``progress`` (0 to 1) of the run is done; the loss's terms."""
        a = self.arguments
        truth = self.mixture.draw(a.rows, a.length, self.generator)
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
            lost = lose(self.network, truth, a.rows // 3, 3, self.generator)
            terms = losses(self.network, truth, lost, a.reads, self.generator)
        torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum().backward()
        rate = scheduled_rate(self.optimizers.config, self.steps, progress)
        norm = self.optimizers.step(rate)
        self.steps += 1
        self.average.update(self.steps)
        return {name: value.detach() for name, value in {**terms, "norm": norm}.items()}

    def export(self) -> None:
        """Write the averaged weights."""
        held = AudioNetwork(self.network.config)
        held.load_state_dict(self.average.weights(self.network))
        save(held, self.arguments.output)


class Curve:
    """Means of the terms between two lines of the log."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, step: int, seconds: float, terms: dict[str, Tensor]) -> None:
        """Take in a step; at some of them print a line."""
        old = self._sums
        self._sums = {name: old[name] + x if old else x for name, x in terms.items()}
        self._count += 1
        if step not in _EARLY and step % 100:
            return
        means = {name: round(float(x) / self._count, 4) for name, x in self._sums.items()}
        self.lines.append({"step": step, "seconds": round(seconds, 1), **means})
        self._sums, self._count = {}, 0
        print(json.dumps(self.lines[-1]), flush=True)


def main() -> None:
    arguments = _parse()
    trainer, curve = Trainer(arguments), Curve()
    print(f"{sum(p.numel() for p in trainer.network.parameters()):,} parameters", flush=True)
    began = saved = time.monotonic()
    while trainer.steps < arguments.steps:
        seconds = time.monotonic() - began
        if seconds >= arguments.seconds:
            break
        curve.add(trainer.steps + 1, seconds, trainer.step(seconds / arguments.seconds))
        if time.monotonic() - saved > _EXPORT_EVERY_S:
            saved = time.monotonic()
            trainer.export()
    trainer.export()
    given = {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    note = {"arguments": given, "steps": trainer.steps, "curve": curve.lines}
    (arguments.output / "run.json").write_text(json.dumps(note) + "\n")


def make_mixture(arguments: argparse.Namespace, device: torch.device) -> Mixture:
    """The training speakers' digits, and what else there is."""
    speakers = [speaker for speaker in SPEAKERS if speaker not in HELD_OUT]
    pools = [(0.8, Pool.of(spoken_digits(arguments.digits, speakers), 0, device))]
    for share, file in ((0.5, arguments.voices), (1.0, arguments.people)):
        if file:
            pools.append((share, Pool.of(synthesised(file), 1, device)))
    return Mixture(pools)


def _network(start: Path | None) -> AudioNetwork:
    """Fresh, or from a checkpoint."""
    if start is None:
        return AudioNetwork(AudioConfig())
    network = AudioNetwork(load(start).config)
    load_weights(network, start)
    return network


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--voices", type=Path)
    parser.add_argument("--people", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint to continue from")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=19200)
    parser.add_argument("--reads", type=int, default=16, help="outlooks of each row")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
