"""Train the audio forecaster: ``python -m experiments.audio.train --help``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from experiments.audio.corpora import HELD_OUT, SPEAKERS, spoken_digits, synthesised
from experiments.audio.losses import lose, losses
from experiments.audio.mixture import Mixture, Pool
from kssm.audio.config import AudioConfig
from kssm.audio.model import AudioNetwork
from kssm.training.averaging import AverageConfig, WeightAverage
from kssm.training.optimizer import OptimizerConfig, Optimizers, scheduled_rate

WEIGHTS = {
    "next": 1.0,
    "next_spread": 0.3,
    "outlook": 0.5,
    "outlook_all": 1.0,
    "outlook_spread": 0.2,
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--digits", type=Path, required=True)
    p.add_argument("--voices", type=Path)
    p.add_argument("--people", type=Path)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--start", type=Path, help="weights to continue from")
    p.add_argument("--seconds", type=float, default=500)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--length", type=int, default=19200)
    p.add_argument("--reads", type=int, default=16)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--steps", type=int, default=10**9)
    return p.parse_args()


def main() -> None:
    a = parse()
    device = torch.device(a.device)
    torch.manual_seed(a.seed)
    network = AudioNetwork(AudioConfig()).to(device)
    if a.start:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(a.start / "model.safetensors"))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    mixture = make_mixture(a, device)
    generator = torch.Generator(device).manual_seed(a.seed + 1)
    optimizers = Optimizers(network, OptimizerConfig(learning_rate=a.lr, warmup_steps=200))
    average = WeightAverage(network, AverageConfig())
    began = time.monotonic()
    step, logged, saved, curve = 0, 0, began, []
    sums: dict[str, torch.Tensor] = {}
    while step < a.steps:
        progress = (time.monotonic() - began) / a.seconds
        if progress >= 1.0:
            break
        truth = mixture.draw(a.rows, a.length, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            lost = lose(network, truth, a.rows // 3, 3, generator)
            terms = losses(network, truth, lost, a.reads, generator)
        loss = torch.stack([WEIGHTS[k] * v for k, v in terms.items()]).sum()
        loss.backward()
        rate = scheduled_rate(optimizers.config, step, progress)
        norm = optimizers.step(rate)
        step += 1
        average.update(step)
        for k, v in {**terms, "norm": norm}.items():
            sums[k] = sums.get(k, 0.0) + v.detach()
        now = time.monotonic()
        if step in (1, 5, 20) or step % 100 == 0:
            n, logged = step - logged, step
            line = {k: round(float(v) / n, 4) for k, v in sums.items()}
            sums = {}
            curve.append({"step": step, "seconds": round(now - began, 1), **line})
            print(json.dumps(curve[-1]), flush=True)
        if now - saved > 60:
            saved = now
            export(network, average, a.output)
    export(network, average, a.output)
    note = {"arguments": {k: str(v) for k, v in vars(a).items()}, "steps": step, "curve": curve}
    (a.output / "run.json").write_text(json.dumps(note))


def make_mixture(a: argparse.Namespace, device: torch.device) -> Mixture:
    speakers = [s for s in SPEAKERS if s not in HELD_OUT]
    pools = [(0.8, Pool.of(spoken_digits(a.digits, speakers), 0, device))]
    for share, file in ((0.5, a.voices), (1.0, a.people)):
        if file:
            pools.append((share, Pool.of(synthesised(file), 1, device)))
    return Mixture(pools)


def export(network: AudioNetwork, average: WeightAverage, output: Path) -> None:
    from kssm.audio.pretrained import save

    held = AudioNetwork(network.config)
    held.load_state_dict(average.weights(network))
    save(held, output)


if __name__ == "__main__":
    main()
