"""Run levers x seeds on one device, one after another, and keep a table of what they gave.

    python -m experiments.ablations --corpus FOLDER --tasks FOLDER --output runs/ablations \
        --levers base,real_0,real_50 --seeds 0,1 --seconds 200

Each run adds a line to OUTPUT/results.jsonl, so an ablation can be continued and extended: a
lever and seed that is in the file already is passed over.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from experiments.ablations.scores import score_weights
from experiments.ablations.season_training import SeasonTrainer
from experiments.ablations.table import BASE, Row, markdown
from kssm.device import resolve_device
from kssm.errors import KSSMError
from kssm.evaluation.tasks import Task
from kssm.training.config import PretrainConfig, Table, build_config, overlay, read_tables
from kssm.training.fabric import make_fabric
from kssm.training.pretrain import AVERAGED, CHECKPOINT, Trainer
from kssm.training.scoring import load_tasks

HERE = Path(__file__).parent
TRAINERS: Mapping[str, type[Trainer]] = MappingProxyType(
    {"usual": Trainer, "season": SeasonTrainer}
)
"""What a lever's key ``trainer`` may name."""


@dataclass(frozen=True)
class Plan:
    """What every run of an ablation has in common."""

    tables: Table
    levers: dict[str, Table]
    seconds: float
    steps: int
    ends: float  # ``time.monotonic`` by which training ends
    device: torch.device
    corpus: Path | None
    tasks: list[Task]
    output: Path
    commit: str | None

    def config(self, lever: str, seed: int) -> PretrainConfig:
        """The base with one lever pulled."""
        bounds = {"seconds": self.seconds} | ({"steps": self.steps} if self.steps else {})
        run = {"run": {**bounds, "seed": seed}}
        return changed(overlay(self.tables, run), self.levers[lever])

    def trainer(self, lever: str) -> type[Trainer]:
        return TRAINERS[self.levers[lever].get("trainer", "usual")]


def changed(tables: Table, lever: Table) -> PretrainConfig:
    """The configuration with a lever pulled."""
    return build_config(overlay(tables, {k: v for k, v in lever.items() if k != "trainer"}))


def read_levers(path: Path) -> dict[str, Table]:
    """Changes by the lever's name; ``base`` changes nothing."""
    return {BASE: {}, **tomllib.loads(path.read_text(encoding="utf-8"))}


def run_once(plan: Plan, lever: str, seed: int) -> Row:
    """Train and score one lever with one seed."""
    config = plan.config(lever, seed)
    folder = plan.output / f"{lever}-{seed}"
    fabric = make_fabric(config.run, folder, plan.device)
    trainer = plan.trainer(lever)(config, folder, fabric, plan.corpus, plan.commit)
    _say(f"compiled in {trainer.warm_up(_say):.0f} s")
    left = max(plan.ends - time.monotonic(), 1.0)
    run = replace(config.run, seconds=min(config.run.seconds, left))
    trainer.config = replace(config, run=run)
    trainer.run(_say)
    trainer.save()
    (folder / "resume.pt").unlink()
    weights = folder / AVERAGED
    if not weights.is_dir():
        weights = folder / CHECKPOINT
    scores = score_weights(trainer, weights, plan.tasks, plan.device)
    return {
        "lever": lever,
        "seed": seed,
        "seconds": round(trainer.elapsed, 1),
        "steps": trainer.step,
        "samples": trainer.samples,
        "loss": trainer.curve[-1]["loss"],
        "commit": trainer.description["commit"],
        **scores,
    }


def run_all(plan: Plan, levers: list[str], seeds: list[int]) -> list[Row]:
    """All runs that are not in the file of results yet, seed by seed; returns all rows."""
    results = plan.output / "results.jsonl"
    rows = _read_rows(results)
    done = {(row["lever"], row["seed"]) for row in rows}
    for seed in seeds:
        for lever in levers:
            if (lever, seed) not in done:
                rows += _attempt(plan, lever, seed, results)
    return rows


def _attempt(plan: Plan, lever: str, seed: int, results: Path) -> list[Row]:
    """One run; what goes wrong with it is said, and must not end the others."""
    try:
        row = run_once(plan, lever, seed)
    except (KSSMError, RuntimeError, ValueError) as error:
        print(f"{lever} {seed}: {type(error).__name__}: {error}"[:300], flush=True)
        return []
    finally:
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    shown = {k: v for k, v in row.items() if k != "commit" and "CRPS " not in k}
    print(" ".join(f"{k}={_short(v)}" for k, v in shown.items()), flush=True)
    return [row]


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments.ablations", description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder of evaluation tasks")
    parser.add_argument("--corpus", type=Path, help="folder of real series")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--config", type=Path, default=HERE.parent / "pretraining" / "small.toml")
    parser.add_argument("--file", type=Path, default=HERE / "levers.toml", help="of the levers")
    parser.add_argument("--levers", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--seconds", type=float, default=200.0, help="of training, for each run")
    parser.add_argument(
        "--steps", type=int, default=0, help="bound on each run's, 0 = the configuration's"
    )
    parser.add_argument("--end", type=float, default=math.inf, help="of training, in seconds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", help="recorded, by default the working tree's")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    known = read_levers(options.file)
    levers = options.levers.split(",") if options.levers else list(known)
    if unknown := sorted(set(levers) - known.keys()):
        raise SystemExit(f"no lever {', '.join(unknown)}; there are {', '.join(known)}")
    options.output.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        tables=read_tables(options.config),
        levers=known,
        seconds=options.seconds,
        steps=options.steps,
        ends=time.monotonic() + options.end,
        device=resolve_device(options.device),
        corpus=options.corpus,
        tasks=load_tasks(options.tasks),
        output=options.output,
        commit=options.commit,
    )
    rows = run_all(plan, levers, [int(seed) for seed in options.seeds.split(",")])
    table = markdown(rows) if rows else "nothing ran"
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
