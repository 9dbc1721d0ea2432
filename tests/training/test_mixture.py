"""The training stream: shapes, shares, determinism, resuming."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.training.corpus import Corpus, CorpusConfig
from kssm.training.crops import CropConfig
from kssm.training.mixture import BatchSource, MixtureConfig, SeriesPool, TrainingBatch

CONFIG = MixtureConfig(rows=4, length=512, short_length=128, bulk_samples=16 * 512)


def equal(first: TrainingBatch, second: TrainingBatch) -> bool:
    same_values = torch.equal(first.values.nan_to_num(1e9), second.values.nan_to_num(1e9))
    return same_values and torch.equal(first.visible, second.visible)


@pytest.fixture(scope="module")
def ramps() -> Corpus:
    """A corpus whose crops are straight lines, so that real rows can be recognised."""
    crop = CropConfig(factors=(1,), stretch=0.0, mixup=0.0, flip_sign=0.0, flip_time=0.0)
    series = [np.arange(3000, dtype=np.float32)]
    return Corpus.from_series([("ramp", series)], config=CorpusConfig(crop=crop))


def test_batches_have_both_shapes_and_the_same_size() -> None:
    source = BatchSource(CONFIG, seed=0)
    shapes = set[tuple[int, ...]]()
    for batch in islice(source, 40):
        shapes.add(tuple(batch.values.shape))
        assert batch.values.dtype == torch.float32
        assert batch.visible.dtype == torch.bool
        assert batch.visible.shape == batch.values.shape
        assert batch.visible[:, 0].all()
        assert batch.values.isfinite().all()
    assert shapes == {(4, 512), (16, 128)}
    assert source.step == 40


def test_short_steps_have_their_share() -> None:
    config = MixtureConfig(rows=1, length=64, short_length=32, bulk_samples=2048)
    short = [batch.values.shape[1] == 32 for batch in islice(BatchSource(config, seed=1), 400)]
    assert 0.14 < sum(short) / 400 < 0.26


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_real_rows_have_their_share_and_are_interleaved(share: float, ramps: Corpus) -> None:
    config = MixtureConfig(
        rows=64, length=256, short_share=0.0, real_share=share, bulk_samples=256 * 256
    )
    source = BatchSource(config, ramps, seed=2)
    counts: list[int] = []
    for batch in islice(source, 4):
        steps = batch.values.diff(dim=1).double()
        straight = (steps - steps.mean(1, keepdim=True)).abs().amax(1) < 1e-2 * steps.abs().amax(1)
        counts.append(int(straight.sum()))
    expected = round(256 * share)
    assert expected <= sum(counts) <= expected + 4  # a synthetic row may be straight too
    if 0.0 < share < 1.0:
        assert min(counts) > 4


def test_missing_real_samples_are_not_visible() -> None:
    series = np.sin(np.arange(2000, dtype=np.float32) / 5.0)
    series[::5] = np.nan
    corpus = Corpus.from_series([("gappy", [series])])
    config = MixtureConfig(
        rows=8, length=256, short_share=0.0, real_share=1.0, bulk_samples=8 * 256
    )
    batch = BatchSource(config, corpus, seed=0).next_batch()
    assert batch.values.isnan().any()
    assert not (batch.visible & batch.values.isnan()).any()
    assert batch.visible[:, 0].all()


def test_same_seed_same_stream_other_seed_other_stream() -> None:
    first, second, other = (BatchSource(CONFIG, seed=seed) for seed in (5, 5, 6))
    for _ in range(12):
        assert equal(first.next_batch(), second.next_batch())
    assert not equal(BatchSource(CONFIG, seed=5).next_batch(), other.next_batch())


def test_resuming_continues_the_stream(ramps: Corpus) -> None:
    whole = BatchSource(CONFIG, ramps, seed=7)
    for _ in range(9):
        whole.next_batch()
    resumed = BatchSource(CONFIG, ramps, seed=7)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.step == 9
    for _ in range(12):
        assert equal(whole.next_batch(), resumed.next_batch())


def test_ranks_see_other_series_of_the_same_shapes() -> None:
    first, second = (BatchSource(CONFIG, seed=3, rank=rank) for rank in (0, 1))
    for _ in range(12):
        ours, theirs = first.next_batch(), second.next_batch()
        assert ours.values.shape == theirs.values.shape
        assert not torch.equal(ours.values, theirs.values)


def test_pool_gives_any_batch_again() -> None:
    pool = SeriesPool(CONFIG, None, rows=4, length=128, seed="x", device=torch.device("cpu"))
    early, late = pool.batch(0), pool.batch(100)
    assert not torch.equal(early.values, late.values)
    assert equal(pool.batch(0), early)
    assert equal(pool.batch(100), late)


def test_foreign_states_are_refused() -> None:
    source = BatchSource(CONFIG, seed=1)
    with pytest.raises(InvalidInputError, match="seed 2"):
        source.load_state_dict(BatchSource(CONFIG, seed=2).state_dict())
    with pytest.raises(InvalidInputError):
        source.load_state_dict({"seed": 1})


@pytest.mark.parametrize(
    "change",
    [{"real_share": 1.5}, {"short_share": -0.1}, {"rows": 0}, {"short_length": 4096}],
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        MixtureConfig(**change)  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "invalid_config"
