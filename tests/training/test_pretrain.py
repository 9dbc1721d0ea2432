"""The training loop: it learns, resumes exactly, and refuses malformed configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.forecast import ForecasterConfig, pretrained
from kssm.models import KSSMConfig
from kssm.training.loss import forecast_loss, tokenise
from kssm.training.mixture import MixtureConfig, TrainingBatch
from kssm.training.optimizer import OptimizerConfig
from kssm.training.pretrain import PretrainConfig, RunConfig, Trainer, load_config

TINY = PretrainConfig(
    model=ForecasterConfig(
        KSSMConfig(d_model=24, n_layers=1, d_inner=32, d_mlp=24, rank=4, group_size=16),
        head_horizon=8,
        head_hidden=32,
    ),
    data=MixtureConfig(rows=8, length=128, short_length=64, bulk_samples=4096),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    run=RunConfig(seconds=1e9, steps=40, compile=False, thinned_share=0.3),
)


def trainer(folder: Path, steps: int = 40) -> Trainer:
    config = replace(TINY, run=replace(TINY.run, steps=steps))
    return Trainer(config, folder, "cpu", None)


def held_out(run: Trainer, batch: TrainingBatch) -> float:
    every = slice(0, None)
    tokens = tokenise(batch.values, batch.visible, TINY.model.head_horizon, reads=every)
    with torch.no_grad():
        return float(forecast_loss(run.model, tokens, every)[1])


def test_training_lowers_the_loss_and_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    batch = run.source.next_batch()
    before = held_out(run, batch)
    lines: list[str] = []
    assert run.run(lines.append)
    assert held_out(run, batch) < 0.97 * before
    run.save()
    loaded = pretrained.load(tmp_path / "checkpoint")
    assert loaded.config == TINY.model
    assert "step     40" in lines[-1]


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=12)
    whole.run(lambda _: None)
    first = trainer(tmp_path / "parts", steps=12)
    first.run_steps(5)
    first.save()
    second = trainer(tmp_path / "parts", steps=12)
    assert second.resume()
    assert second.step == 5
    second.run(lambda _: None)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_config_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[model]\nhead_horizon = 8\n[model.backbone]\nn_layers = 3\n[run]\nsteps = 7\n")
    config = load_config(path)
    assert config.model.head_horizon == 8
    assert config.model.backbone.n_layers == 3
    assert config.run.steps == 7


@pytest.mark.parametrize(
    "text", ["[other]\nx = 1\n", "[run]\nstep = 7\n", "[model.backbone]\nd_inner = 65\n", "="]
)
def test_malformed_config_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as error:
        load_config(path)
    assert error.value.code == "invalid_config"
