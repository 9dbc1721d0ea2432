"""The fused kernels against the torch step: equal numbers, and nothing touched but its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kssm.forecast import SignalForecaster, pretrained
from kssm.forecast.forecaster import ForecasterConfig
from kssm.forecast.fused import FusedModel
from kssm.forecast.fused.weights import Sizes, Weights, kind_for
from kssm.forecast.resolutions import MultiResolutionForecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.forecast.thinning import last_visible
from kssm.models import KSSMConfig, State

pytest.importorskip("triton")

from kssm.forecast.fused.kernel_call import Call
from kssm.forecast.fused.kernel_launch import Plan, Scratch, launch
from kssm.forecast.fused.kernel_launch_many import launch_many
from kssm.forecast.fused.kernel_plan_many import Between, ManyPlan
from kssm.forecast.fused.kernel_thinning import ended_run, keep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = torch.tensor([3, 7, -1, 1, 11], device=DEVICE)
LIVE = SLOTS >= 0
ONE_LAYER = KSSMConfig(d_model=32, n_layers=1, d_inner=32, d_mlp=32, rank=4, group_size=16)
SPLIT = Plan(tile=16, channels=16, hidden=16, head_hidden=16, horizons=4)
MANY = ManyPlan(
    chunk=3,
    tile=16,
    columns=64,
    sum_tile=16,
    sum_columns=16,
    deep=32,
    stages=1,
    select_tile=16,
    splits=3,
    rows=16,
    horizons=8,
)
WHOLE = replace(MANY, dense_tile=16, dense_columns=(16, 16, 16))
ONE = replace(SPLIT, tile=1, hidden=32, head_hidden=32, horizons=16)
PLANS = [
    pytest.param(SPLIT, id="split"),
    pytest.param(ONE, id="one"),
    pytest.param(MANY, id="many"),
    pytest.param(WHOLE, id="whole"),
]


class Fused:
    """A forecaster's kernels over an arena of its own, a copy of ``arena``."""

    def __init__(
        self,
        model: SignalForecaster,
        arena: State,
        plan: Plan | ManyPlan,
        kind: torch.dtype = torch.float32,
    ) -> None:
        sizes = Sizes.of(model)
        assert sizes is not None
        self.weights = Weights.pack(model, sizes, kind)
        self.plan = plan
        self.arena = {name: entry.clone() for name, entry in arena.items()}

    def step_(self, values: Tensor, slots: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        addresses = [entry.data_ptr() for entry in self.arena.values()]
        tail = torch.full_like(values, 7.0)
        healthy = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        table = torch.tensor(addresses, device=values.device)
        call = Call(values, dt, slots, table, tail, healthy)
        if isinstance(self.plan, Plan):
            between = Scratch.allocate(len(values), self.weights, self.plan)
        else:
            between = Between.allocate(self.plan.chunk, self.weights, self.plan)
        for memory in between:
            memory.fill_(torch.nan)  # what is read before it is written shows
        if isinstance(self.plan, Plan):
            assert isinstance(between, Scratch)
            launch(self.weights, self.plan, between, call, pdl=False)
        else:
            assert isinstance(between, Between)
            launch_many(self.weights, self.plan, [between], call, pdl=False)
        return tail, healthy


def samples(steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values and steps [steps, 5]: some missing, some far off, irregular in time."""
    generator = torch.Generator().manual_seed(seed)
    values = 100 + 3 * torch.randn(steps, 5, generator=generator, dtype=torch.float64)
    values[-1, 1], values[-2, 3], values[-1, 0], values[-2, 4] = torch.nan, 1e30, -torch.inf, -1e29
    dt = torch.rand(steps, 5, generator=generator, dtype=torch.float64) * 5 + 0.2
    return values.to(DEVICE), dt.to(DEVICE)


def warm(model: SignalForecaster) -> State:
    """An arena whose rows have seen nine samples."""
    arena = model.initial_state(12)
    for x, step in zip(*samples(9, seed=1), strict=True):
        model.step_torch_(x, arena, SLOTS, step)
    return arena


def worst(found: State, expected: State) -> float:
    """Largest difference of rows other than padding, relative to the entry's largest number."""
    errors = [
        (found[name][1:] - expected[name][1:]).abs().max() / expected[name][1:].abs().max()
        for name in expected
    ]
    return float(torch.stack(errors).max())


@pytest.mark.parametrize("plan", PLANS)
def test_steps_equal_those_of_torch(plan: Plan | ManyPlan) -> None:
    model = tiny_forecaster().to(DEVICE)
    reference = warm(model)
    fused = Fused(model, reference, plan)
    for x, step in zip(*samples(2), strict=True):
        expected = model.step_torch_(x, reference, SLOTS, step)
        tail, healthy = fused.step_(x, SLOTS, step)
        assert healthy.all()
        torch.testing.assert_close(
            tail[LIVE], expected.tail[LIVE], rtol=1e-4, atol=1e-5, equal_nan=True
        )
        assert tail[~LIVE].isnan().all()
    assert expected.tail[LIVE].isfinite().sum() == 2
    assert worst(fused.arena, reference) < 1e-5


@pytest.mark.parametrize("plan", [SPLIT, MANY, WHOLE])
def test_sizes_that_are_not_powers_of_two_are_padded(plan: Plan | ManyPlan) -> None:
    backbone = KSSMConfig(
        d_model=20, n_layers=1, d_inner=96, d_mlp=48, rank=5, group_size=32, conv_width=3
    )
    torch.manual_seed(1)
    model = SignalForecaster(ForecasterConfig(backbone, head_horizon=32, head_hidden=24))
    model = model.to(DEVICE).eval()
    reference = warm(model)
    fused = Fused(model, reference, plan)
    for x, step in zip(*samples(2), strict=True):
        model.step_torch_(x, reference, SLOTS, step)
        fused.step_(x, SLOTS, step)
    assert worst(fused.arena, reference) < 1e-5


@pytest.mark.parametrize("plan", PLANS)
def test_half_precision_products_stay_close(plan: Plan | ManyPlan) -> None:
    model = tiny_forecaster(backbone=ONE_LAYER).to(DEVICE)
    reference = warm(model)
    fused = Fused(model, reference, plan, torch.float16)
    for x, step in zip(*samples(2), strict=True):
        model.step_torch_(x, reference, SLOTS, step)
        fused.step_(x, SLOTS, step)
    assert 1e-6 < worst(fused.arena, reference) < 3e-3


@pytest.mark.parametrize("plan", PLANS)
def test_a_sick_row_touches_nobody_and_keeps_its_forecast(plan: Plan | ManyPlan) -> None:
    model = tiny_forecaster().to(DEVICE)
    well = Fused(model, warm(model), plan)
    sick = Fused(model, well.arena, plan)
    sick.arena["layers.0.state"][7] = torch.nan
    before = {name: entry.clone() for name, entry in sick.arena.items()}
    values, dt = samples(2)
    _, healthy = sick.step_(values[0], SLOTS, dt[0])
    well.step_(values[0], SLOTS, dt[0])
    assert healthy.tolist() == [True, False, True, True, True]
    for name, entry in sick.arena.items():
        others = [slot for slot in range(12) if slot != 7]
        assert torch.equal(entry[others], well.arena[name][others])
        idle = [0, 2, 4, 5, 6, 8, 9, 10]
        assert torch.equal(entry[idle], before[name][idle])
    for name in ("scaler", "forecast"):
        assert torch.equal(sick.arena[name][7], before[name][7])
    for name in ("layers.0.window", "layers.1.window", "layers.1.state"):
        assert sick.arena[name][7].isfinite().all()


@pytest.mark.parametrize("plan", PLANS)
def test_rows_do_not_depend_on_their_neighbours(plan: Plan | ManyPlan) -> None:
    model = tiny_forecaster(backbone=ONE_LAYER).to(DEVICE)
    together = Fused(model, warm(model), plan)
    alone = Fused(model, together.arena, plan)
    left_out = {name: entry[1].clone() for name, entry in alone.arena.items()}
    order = torch.tensor([4, 2, 0, 1], device=DEVICE)  # slot 1 stays out
    values, dt = samples(2)
    together.step_(values[0], SLOTS, dt[0])
    alone.step_(values[0][order], SLOTS[order], dt[0][order])
    for name, entry in together.arena.items():
        assert torch.equal(entry[[3, 7, 11]], alone.arena[name][[3, 7, 11]])
        assert torch.equal(alone.arena[name][1], left_out[name])


def test_samples_are_kept_and_runs_taken_like_by_torch() -> None:
    model = tiny_forecaster(thinning=(2, 8)).to(DEVICE)
    assert isinstance(model, MultiResolutionForecaster)
    mine, theirs = model.initial_state(12), model.initial_state(12)
    healthy = torch.tensor([True, True, True, False, True], device=DEVICE)
    for x, step in zip(*samples(8), strict=True):
        keep(x, step, SLOTS, healthy, mine["clock"], mine["block"])
        model._take(x, step, theirs, SLOTS.clamp_min(0), healthy)  # pyright: ignore[reportPrivateUsage]
    for name in ("clock", "block"):
        assert torch.equal(mine[name][1:], theirs[name][1:])
    assert mine["clock"][[3, 7, 1, 11], 0].tolist() == [8.0, 8.0, 0.0, 8.0]
    due = torch.full((5,), 8.0, dtype=torch.float64, device=DEVICE)
    for factor in (2, 8):
        values, steps, own = ended_run(SLOTS, due, factor, mine["clock"], mine["block"])
        assert own.tolist() == [3, 7, -1, -1, 11]
        runs = theirs["block"][own.clamp_min(0), :, 8 - factor : 8]
        live = own > 0
        expected = last_visible(runs[:, 0])[live]
        torch.testing.assert_close(values[live], expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(steps[live], runs[:, 1].mean(-1)[live])


def test_what_the_kernels_have_no_form_for_is_left_to_torch() -> None:
    small = {"n_layers": 1, "d_inner": 32, "d_mlp": 32, "rank": 4, "group_size": 16}
    for backbone, fits in (
        (KSSMConfig(d_model=32, **small), True),
        (KSSMConfig(d_model=48, **small), True),
        (KSSMConfig(d_model=600, **small), False),
        (KSSMConfig(d_model=32, **(small | {"d_mlp": 0})), False),
        (KSSMConfig(d_model=32, **(small | {"group_size": 8})), False),
    ):
        model = SignalForecaster(ForecasterConfig(backbone, head_horizon=16, head_hidden=32))
        assert (Sizes.of(model) is not None) == fits
    model = tiny_forecaster()
    values = torch.ones(1, dtype=torch.float64)
    fused = FusedModel()
    assert fused.step_(model, values, model.initial_state(2), torch.tensor([1]), None) is None
    assert model.step_weights is None


def test_sixteen_bits_are_for_weights_that_fit_in_them() -> None:
    model = tiny_forecaster()
    assert kind_for(model) == torch.float32
    assert kind_for(model.half().float()) == torch.float16
    for name in ("kssm-signal-base", "kssm-signal-small"):
        assert kind_for(pretrained.load(name)) == torch.float16
