"""Two ranks with DDP (gloo): equal on both, and equal to one process with the joined batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from kssm.forecast import ForecasterConfig
from kssm.models import KSSMConfig
from kssm.training.config import PretrainConfig, RunConfig
from kssm.training.fabric import make_fabric
from kssm.training.mixture import BatchSource, MixtureConfig, TrainingBatch
from kssm.training.optimizer import OptimizerConfig
from kssm.training.pretrain import Trainer

STEPS, RATE = 3, 5e-3
CONFIG = PretrainConfig(
    model=ForecasterConfig(
        KSSMConfig(d_model=16, n_layers=2, d_inner=16, d_mlp=16, rank=4, group_size=8),
        head_horizon=8,
        head_hidden=16,
    ),
    data=MixtureConfig(rows=4, length=64, short_length=32, bulk_samples=1024),
    optimizer=OptimizerConfig(learning_rate=RATE, warmup_steps=1, cooldown=1e-9, clip=1e9),
    run=RunConfig(seconds=1e9, steps=100, compile=False, precision="32-true", thinned_share=0.0),
)


def first_gradients(trainer: Trainer, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """The gradients that the optimisers are given for a batch, which changes the weights."""
    seen: dict[str, torch.Tensor] = {}
    step = trainer.optimizers.step

    def spy(learning_rate: float) -> torch.Tensor:
        named = trainer.model.named_parameters()
        seen.update({n: p.grad.clone() for n, p in named if p.grad is not None})
        return step(learning_rate)

    trainer.optimizers.step = spy
    trainer.update(batch, thinned=False, offset=0)
    trainer.optimizers.step = step
    return seen


def rank_main(fabric: Fabric, folder: Path) -> None:
    """What each of the two processes does; its results go to a file."""
    torch.set_num_threads(1)
    trainer = Trainer(CONFIG, folder, fabric)
    gradients = first_gradients(trainer, trainer.source.next_batch())
    for _ in range(STEPS - 1):
        trainer.update(trainer.source.next_batch(), thinned=False, offset=0)
    weights = trainer.model.state_dict()
    torch.save((gradients, weights, trainer.samples), folder / f"rank{fabric.global_rank}.pt")
    trainer.run(lambda _: None)
    trainer.save()
    torch.save(trainer.model.state_dict(), folder / f"end{fabric.global_rank}.pt")


def joined(parts: list[TrainingBatch]) -> TrainingBatch:
    return TrainingBatch(
        torch.cat([p.values for p in parts]), torch.cat([p.visible for p in parts])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    cpu = torch.device("cpu")
    fabric = make_fabric(CONFIG.run, folder, cpu, devices=2, spawn=True)
    fabric.launch(rank_main, folder)
    return folder


def test_ranks_agree_to_the_bit(folder: Path) -> None:
    ranks = [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]
    for part in range(2):
        for name, tensor in ranks[0][part].items():
            assert torch.equal(tensor, ranks[1][part][name]), name
    ends = [torch.load(folder / f"end{r}.pt", weights_only=True) for r in range(2)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_two_ranks_are_one_process_with_the_joined_batch(folder: Path) -> None:
    gradients, weights, samples = torch.load(folder / "rank0.pt", weights_only=True)
    alone = Trainer(CONFIG, folder, make_fabric(CONFIG.run, folder, torch.device("cpu")))
    start = {name: p.detach().clone() for name, p in alone.model.named_parameters()}
    sources = [BatchSource(CONFIG.data, seed=0, rank=rank) for rank in range(2)]
    expected = first_gradients(alone, joined([source.next_batch() for source in sources]))
    for name, gradient in expected.items():
        assert (gradient - gradients[name]).norm() <= 1e-5 * gradient.norm(), name
    for _ in range(STEPS - 1):
        alone.update(joined([source.next_batch() for source in sources]), thinned=False, offset=0)
    for name, parameter in alone.model.named_parameters():
        moved = (parameter - start[name]).norm()
        assert (parameter - weights[name]).norm() <= 0.02 * moved, name
    assert samples == alone.samples == STEPS * 2 * 4 * 64


def test_one_process_resumes_what_two_have_begun(folder: Path) -> None:
    config = replace(CONFIG, run=replace(CONFIG.run, steps=104))
    alone = Trainer(config, folder, make_fabric(config.run, folder, torch.device("cpu")))
    assert alone.resume()
    assert alone.step == 100
    assert alone.run(lambda _: None)
    assert alone.step == 104
