"""The corpus: reading folders, weights, and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.training.corpus import Corpus, CorpusConfig, capped_shares
from kssm.training.crops import CropConfig, draw_crops, unit_deviation
from kssm.training.synthetic import Sampler

NEUTRAL = CropConfig(
    factors=(1,), stretch=0.0, mixup=0.0, flip_sign=0.0, flip_time=0.0, scale_deviation=0.0
)


def wave(length: int, period: float = 24.0, level: float = 0.0) -> np.ndarray:
    return (np.sin(2 * np.pi * np.arange(length) / period) + level).astype(np.float32)


def save(path: Path, *series: np.ndarray) -> None:
    offsets = np.cumsum([0, *(len(x) for x in series)])
    np.savez(path, values=np.concatenate(series), offsets=offsets)


def sampler(rows: int, length: int) -> Sampler:
    return Sampler(rows, length, False, torch.Generator().manual_seed(0), torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "long.npz", wave(4000), wave(2000, 50.0), wave(10))
    save(tmp_path / "short.npz", wave(100, 12.0))
    lines = "\n".join(f"{value}" for value in wave(300, 7.0))
    (tmp_path / "table.csv").write_text(f"sales\n{lines}\n")
    (tmp_path / "README.md").write_text("not a series")
    return tmp_path


def test_folder_is_read_in_order(folder: Path) -> None:
    corpus = Corpus.read(folder)
    assert corpus.sources == ("long", "short", "table")
    assert len(corpus) == 4  # the series of ten samples is too short
    assert corpus.lengths.tolist() == [4000, 2000, 100, 300]
    assert corpus.starts.tolist() == [0, 4000, 6000, 6100]
    assert corpus.values.dtype == torch.float32
    assert corpus.weights.sum().item() == pytest.approx(1.0)


def test_one_file_is_a_corpus(folder: Path) -> None:
    assert Corpus.read(folder / "table.csv").sources == ("table",)


def test_exclusion_and_weights(folder: Path) -> None:
    config = CorpusConfig(exclude=("table",), source_weights={"short": 0.0}, source_share_cap=1.0)
    corpus = Corpus.read(folder, config=config)
    assert corpus.sources == ("long", "short")
    assert corpus.weights[2].item() == 0.0
    assert corpus.weights[0] / corpus.weights[1] == pytest.approx(2**0.5, rel=1e-6)


def test_source_shares_grow_with_the_root_of_size_up_to_the_cap(folder: Path) -> None:
    free = Corpus.read(folder, config=CorpusConfig(source_share_cap=1.0))
    shares = torch.zeros(3).double().index_add(0, free.source_ids, free.weights)
    assert (shares[0] / shares[1]).item() == pytest.approx(60**0.5, rel=1e-6)
    capped = Corpus.read(folder, config=CorpusConfig(source_share_cap=0.5))
    shares = torch.zeros(3).double().index_add(0, capped.source_ids, capped.weights)
    assert shares[0].item() == pytest.approx(0.5, rel=1e-6)
    assert (shares[2] / shares[1]).item() == pytest.approx(3**0.5, rel=1e-6)


@pytest.mark.parametrize("cap", [0.3, 0.5, 1.0])
def test_capped_shares_sum_to_one(cap: float) -> None:
    shares = np.array([0.6, 0.25, 0.1, 0.05, 0.0])
    capped = capped_shares(shares, cap)
    assert capped.sum() == pytest.approx(1.0)
    assert capped.max() <= max(cap, 0.6 if cap == 1.0 else cap) + 1e-9
    assert capped[4] == 0.0


def test_too_few_sources_for_the_cap_become_equal() -> None:
    np.testing.assert_allclose(capped_shares(np.array([0.9, 0.1, 0.0]), 0.25), [0.5, 0.5, 0.0])


def test_samples_follow_the_common_form(folder: Path) -> None:
    corpus = Corpus.read(folder)
    crops = corpus.sample(200, 256, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 256)
    assert crops.dtype == torch.float32
    assert not crops.isinf().any()
    assert crops[:, 0].isfinite().all()
    assert ((~crops.isnan()).sum(1) >= 32).all()
    again = corpus.sample(200, 256, torch.Generator().manual_seed(0))
    assert torch.equal(crops.nan_to_num(), again.nan_to_num())
    spread = crops[~crops.isnan().any(1)].std(1).log()
    assert spread.std().item() == pytest.approx(2.0, abs=0.5)


def test_long_windows_come_from_long_series(folder: Path) -> None:
    corpus = Corpus.read(folder, config=CorpusConfig(source_share_cap=1.0, crop=NEUTRAL))
    missing = corpus.sample(400, 2000, torch.Generator().manual_seed(0)).isnan().float().mean()
    assert missing < 0.08  # 0.23 if series shorter than the window were not drawn less often


def test_neutral_crops_are_standardised_windows() -> None:
    series = wave(500, 25.0, level=3.0)
    corpus = Corpus.from_series([("one", [series])], config=CorpusConfig(crop=NEUTRAL))
    crops = corpus.sample(20, 100, torch.Generator().manual_seed(0))
    expected = torch.from_numpy(series) / (0.5**0.5)
    windows = expected.unfold(0, 100, 1)
    nearest = (crops[:, None] - windows).abs().amax(2).amin(1)
    assert nearest.max() < 1e-3
    assert crops[:, 0].unique().numel() > 5


def test_aggregation_takes_means_or_every_nth_sample() -> None:
    values = torch.arange(1000.0)
    config = CropConfig(factors=(4,), stretch=0.0)
    rows = sampler(50, 100)
    starts, lengths = torch.zeros(50, dtype=torch.int64), torch.full((50,), 1000)
    crops = draw_crops(rows, values, starts, lengths, config)
    torch.testing.assert_close(crops.diff(dim=1), torch.full((50, 99), 4.0))
    fraction = (crops[:, 0] % 1.0).unique().tolist()
    assert fraction == [0.0, 0.5]  # a mean of four successive numbers ends in .5


def test_aggregation_never_crosses_into_the_next_series() -> None:
    values = torch.cat([torch.zeros(300), torch.full((300,), 1e6)])
    rows = sampler(100, 128)
    starts, lengths = torch.zeros(100, dtype=torch.int64), torch.full((100,), 300)
    crops = draw_crops(rows, values, starts, lengths, CropConfig(stretch=0.5))
    assert crops.nan_to_num().abs().max() == 0.0


def test_stretching_interpolates() -> None:
    values = torch.arange(200.0)
    rows = sampler(50, 100)
    starts, lengths = torch.zeros(50, dtype=torch.int64), torch.full((50,), 200)
    config = CropConfig(factors=(1,), stretch=1.0)
    slope = draw_crops(rows, values, starts, lengths, config).diff(dim=1)
    assert (slope >= 0.24).all()
    assert (slope <= 1.01).all()


def test_missing_samples_stay_missing_and_crops_start_with_a_value() -> None:
    series = wave(400)
    series[100:130] = np.nan
    series[::7] = np.inf
    corpus = Corpus.from_series([("gappy", [series])], config=CorpusConfig(crop=NEUTRAL))
    crops = corpus.sample(100, 200, torch.Generator().manual_seed(0))
    assert crops[:, 0].isfinite().all()
    assert crops.isnan().any(1).all()
    assert not crops.isinf().any()


def test_nearly_empty_crops_give_way_to_others() -> None:
    sparse = np.full(5000, np.nan, dtype=np.float32)
    sparse[::1000] = 1.0
    sparse[-1] = 2.0
    corpus = Corpus.from_series([("sparse", [sparse]), ("dense", [wave(5000)])])
    crops = corpus.sample(100, 200, torch.Generator().manual_seed(0))
    assert ((~crops.isnan()).sum(1) >= 32).all()
    assert crops[:, 0].isfinite().all()


def test_unit_deviation_of_constant_and_large_rows() -> None:
    x = torch.stack([torch.full((50,), 7.0), 1e20 + 1e18 * torch.randn(50), torch.zeros(50)])
    z = unit_deviation(x)
    assert z.isfinite().all()
    torch.testing.assert_close(z[0], torch.ones(50))
    assert z[1].std(correction=0).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "config",
    [CorpusConfig(exclude=("nothing",)), CorpusConfig(source_weights={"nothing": 1.0})],
)
def test_unknown_names_are_refused(folder: Path, config: CorpusConfig) -> None:
    with pytest.raises(InvalidInputError, match="nothing") as caught:
        Corpus.read(folder, config=config)
    assert caught.value.code == "invalid_corpus"


def test_bad_file_in_a_folder_is_named(folder: Path) -> None:
    (folder / "broken.npz").write_bytes(b"junk")
    with pytest.raises(InvalidInputError, match=r"broken\.npz") as caught:
        Corpus.read(folder)
    assert caught.value.code == "invalid_corpus"
    Corpus.read(folder, config=CorpusConfig(exclude=("broken",)))


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidInputError) as caught:
            Corpus.read(path)
        assert caught.value.code == "invalid_corpus"
    save(tmp_path / "tiny.npz", wave(5))
    with pytest.raises(InvalidInputError, match="at least 32"):
        Corpus.read(tmp_path)
    everything = CorpusConfig(source_weights={"all": 0.0})
    with pytest.raises(InvalidInputError, match="weight 0"):
        Corpus.from_series([("all", [wave(100)])], config=everything)
