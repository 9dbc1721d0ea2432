"""Rows read at several resolutions: one state whichever way samples come, rows independent."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast import pretrained
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.resolutions import MultiResolutionForecaster, build_forecaster
from kssm.models import KSSMConfig, State

ROWS, TOKENS = 3, 150


@pytest.fixture(scope="module")
def model() -> MultiResolutionForecaster:
    return make()


def make(thinning: tuple[int, ...] = (2, 8)) -> MultiResolutionForecaster:
    backbone = KSSMConfig(d_model=32, n_layers=2, d_inner=32, d_mlp=32, rank=4, group_size=16)
    config = ForecasterConfig(backbone, head_horizon=16, head_hidden=32, thinning=thinning)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        forecaster = build_forecaster(config).eval().requires_grad_(False)
    assert isinstance(forecaster, MultiResolutionForecaster)
    return forecaster


@pytest.fixture(scope="module")
def samples() -> Tensor:
    rng = np.random.default_rng(1)
    values = np.cumsum(rng.normal(size=(ROWS, TOKENS)), axis=1) + 1e3
    values[1, 40:60] = np.nan
    values[rng.random((ROWS, TOKENS)) < 0.1] = np.nan
    return torch.from_numpy(values)


@pytest.fixture(scope="module")
def steps() -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(0.7, 1.4, size=(ROWS, TOKENS)))


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def test_no_thinning_means_the_plain_forecaster() -> None:
    assert type(build_forecaster(ForecasterConfig(KSSMConfig(d_model=32)))) is SignalForecaster


@pytest.mark.parametrize("thinning", [(1,), (3,), (0,), (2, 7)])
def test_factors_must_divide_the_heads_horizon(thinning: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make(thinning)
    assert caught.value.code == "invalid_config"


def test_every_cut_gives_the_same_state(
    model: MultiResolutionForecaster, samples: Tensor, steps: Tensor
) -> None:
    whole = model.prefill(samples, model.initial_state(ROWS), dt=steps)
    state, tails = model.initial_state(ROWS), list[Tensor]()
    for start, stop in ((0, 5), (5, 6), (6, 50), (50, 96), (96, 97), (97, TOKENS)):
        output = model.prefill(samples[:, start:stop], state, dt=steps[:, start:stop])
        state = output.state
        tails.append(output.tail)
    assert_same(state, whole.state)
    torch.testing.assert_close(torch.cat(tails, dim=1), whole.tail, rtol=0, atol=0, equal_nan=True)


def test_steps_give_the_state_of_prefill(
    model: MultiResolutionForecaster, samples: Tensor, steps: Tensor
) -> None:
    whole = model.prefill(samples, model.initial_state(ROWS), dt=steps).state
    arena = model.initial_state(ROWS + 1)
    slots = torch.tensor([3, -1, 1, 2])
    for t in range(TOKENS):
        values = torch.stack([samples[2, t], torch.tensor(9.0), samples[0, t], samples[1, t]])
        spaced = torch.stack([steps[2, t], torch.tensor(1.0), steps[0, t], steps[1, t]])
        model.step_(values, arena, slots, spaced.double())
    assert_same({name: entry[1:] for name, entry in arena.items()}, whole)


def test_rows_do_not_know_each_other(model: MultiResolutionForecaster, samples: Tensor) -> None:
    lengths = torch.tensor([TOKENS, 77, 0])
    together = model.prefill(samples, model.initial_state(ROWS), lengths).state
    alone = model.prefill(samples[1:2, :77], model.initial_state(1)).state
    assert_same({name: entry[1:2] for name, entry in together.items()}, alone)
    fresh = model.initial_state(1)
    assert_same({name: entry[2:] for name, entry in together.items()}, fresh)


def test_compiled_code_and_torch_agree(
    samples: Tensor, steps: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    compiled = model.prefill(samples, model.initial_state(ROWS), dt=steps).state
    for name in ("prefill", "step_", "roll_out"):
        monkeypatch.setattr(model.native, name, lambda *_, **__: None)
    plain = model.prefill(samples, model.initial_state(ROWS), dt=steps).state
    for name, entry in compiled.items():
        torch.testing.assert_close(plain[name], entry, rtol=1e-4, atol=1e-5)


def test_reading_along_is_reading_after_each(
    model: MultiResolutionForecaster, samples: Tensor
) -> None:
    own = {name: model.initial_state(ROWS)[name] for name in model.row_spec()}
    picks = torch.tensor([[15, 31]] * ROWS)
    _, state, (blocks, stats) = model.prefill_reading(samples[:, :40], own, None, None, picks)
    plain = model.prefill(samples[:, :32], model.initial_state(ROWS)).state
    torch.testing.assert_close(blocks[:, 1], plain["forecast"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats[:, 1], plain["scaler"])
    assert state["forecast"].shape == (ROWS, 16, 9)


@pytest.mark.parametrize("horizon", [1, 16, 40])
def test_forecasts_are_ordered_finite_and_read_only_their_entries(
    model: MultiResolutionForecaster, samples: Tensor, horizon: int
) -> None:
    state = model.prefill(samples, model.initial_state(ROWS)).state
    levels = (0.05, 0.5, 0.9)
    forecast = model.forecast(state, horizon, levels)
    assert forecast.shape == (ROWS, horizon, 3)
    assert bool(forecast.isfinite().all())
    assert bool((forecast.diff(dim=-1) >= 0).all())
    needed = {name: state[name] for name in model.forecast_entries(horizon)}
    torch.testing.assert_close(model.forecast(needed, horizon, levels), forecast, rtol=0, atol=0)


def test_a_row_without_a_past_is_forecast_by_itself_alone(
    model: MultiResolutionForecaster, samples: Tensor
) -> None:
    plain = SignalForecaster(model.config).eval()
    plain.load_state_dict(model.state_dict())
    state = model.prefill(samples[:, :12], model.initial_state(ROWS)).state
    own = plain.prefill(samples[:, :12], plain.initial_state(ROWS)).state
    torch.testing.assert_close(
        model.forecast(state, 20, (0.1, 0.5)), plain.forecast(own, 20, (0.1, 0.5))
    )


def test_unseen_rows_forecast_nothing(model: MultiResolutionForecaster) -> None:
    assert bool(model.forecast(model.initial_state(2), 20, (0.5,)).isnan().all())


def test_thinning_survives_a_checkpoint(model: MultiResolutionForecaster, tmp_path: object) -> None:
    folder = f"{tmp_path}/checkpoint"
    pretrained.save(model, folder, half=False)
    loaded = pretrained.load(folder)
    assert isinstance(loaded, MultiResolutionForecaster)
    assert loaded.config.thinning == (2, 8)
    assert loaded.fingerprint == model.fingerprint
