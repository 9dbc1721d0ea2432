"""The training loop: it learns, resumes exactly, starts from weights and keeps an average."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kssm.errors import CheckpointError, NotFoundError
from kssm.forecast import ForecasterConfig, pretrained
from kssm.models import KSSMConfig
from kssm.training.averaging import AverageConfig
from kssm.training.config import PretrainConfig, RunConfig
from kssm.training.fabric import make_fabric
from kssm.training.loss import Objective, tokenise
from kssm.training.mixture import MixtureConfig, TrainingBatch
from kssm.training.optimizer import OptimizerConfig
from kssm.training.pretrain import Trainer

TINY = PretrainConfig(
    model=ForecasterConfig(
        KSSMConfig(d_model=24, n_layers=1, d_inner=32, d_mlp=24, rank=4, group_size=16),
        head_horizon=8,
        head_hidden=32,
    ),
    data=MixtureConfig(rows=8, length=128, short_length=64, bulk_samples=4096),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    average=AverageConfig(share=0.1, every=2),
    run=RunConfig(seconds=1e9, steps=40, compile=False, thinned_share=0.3),
)


def trainer(folder: Path, steps: int = 40, **changes: object) -> Trainer:
    config = replace(TINY, run=replace(TINY.run, steps=steps, **changes))
    fabric = make_fabric(config.run, folder, torch.device("cpu"))
    return Trainer(config, folder, fabric, commit="abc")


def held_out(model: torch.nn.Module, batch: TrainingBatch) -> float:
    every = slice(0, None)
    tokens = tokenise(batch.values, batch.visible, TINY.model.head_horizon, reads=every)
    with torch.no_grad():
        sums = Objective(model)(tokens, every)
    return float(sums.plain / sums.known)


def test_training_lowers_the_loss_and_leaves_loadable_checkpoints(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    batch = run.source.next_batch()
    before = held_out(run.model, batch)
    lines: list[str] = []
    assert run.run(lines.append)
    run.save()
    loaded = pretrained.load(tmp_path / "checkpoint")
    averaged = pretrained.load(tmp_path / "averaged")
    assert loaded.config == averaged.config == TINY.model
    assert held_out(run.model, batch) < 0.97 * before
    assert held_out(averaged, batch) < 0.97 * before
    assert averaged.fingerprint != loaded.fingerprint
    assert "step     40" in lines[-1]


def test_the_record_says_what_the_run_was(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=8)
    (tmp_path / "run.json").write_text('{"scores": {"toy": 1.0}}')
    run.run(lambda _: None)
    run.save()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["commit"] == "abc"
    assert record["config"]["run"]["steps"] == 8
    assert record["step"] == record["curve"][-1]["step"] == 8
    assert record["samples"] == 8 * 8 * 128
    assert record["scores"] == {"toy": 1.0}
    assert record["device"].startswith("1 x ")


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=12)
    whole.run(lambda _: None)
    first = trainer(tmp_path / "parts", steps=12)
    for _ in range(5):
        first.train_step()
    first.save()
    second = trainer(tmp_path / "parts", steps=12)
    assert second.resume()
    assert second.step == 5
    second.run(lambda _: None)
    assert whole.average is not None
    assert second.average is not None
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    averages = whole.average.weights(whole.model), second.average.weights(second.model)
    for name, tensor in averages[0].items():
        assert torch.equal(tensor, averages[1][name]), name
    assert second.samples == whole.samples


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert not trainer(tmp_path).resume()


def test_a_run_saves_on_its_way(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=24, save_seconds=1e-6)
    run.run(lambda _: None)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 24
    assert not list(tmp_path.glob("*.partial"))


def test_warm_start_takes_the_weights_and_nothing_else(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", steps=10)
    first.run(lambda _: None)
    first.save()
    second = trainer(tmp_path / "second", init=str(tmp_path / "first" / "checkpoint"))
    assert (second.step, second.samples, second.elapsed) == (0, 0, 0.0)
    shipped = pretrained.load(tmp_path / "first" / "checkpoint")
    assert second.model.fingerprint == shipped.fingerprint
    fresh = trainer(tmp_path / "third").optimizers.state_dict()
    assert str(second.optimizers.state_dict()) == str(fresh)


def test_warm_start_from_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        trainer(tmp_path, init="no-such-model")
    with pytest.raises(CheckpointError):
        trainer(tmp_path, init=pretrained.DEFAULT)


def test_warming_up_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = run.model.fingerprint
    assert run.warm_up() > 0.0
    assert run.model.fingerprint == before
    assert all(p.grad is None for p in run.model.parameters())


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=8, tensorboard=True)
    run.run(lambda _: None)
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
