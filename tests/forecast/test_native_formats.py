"""The compiled code with weights in each format: the same promises, and close to fp32."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch

from kssm.errors import CheckpointError, InvalidInputError
from kssm.forecast import Forecaster, SignalForecaster, pretrained
from kssm.forecast.native import NativeModel, calls, library, weights
from kssm.forecast.testing import tiny_forecaster
from kssm.models import State
from kssm.quantization import FORMATS, WeightFormat, format_of, quantize
from tests.forecast.support import (
    CONFIGS,
    ROWS,
    TOKENS,
    assert_same,
    needs_native,
    same_bits,
    shaken,
    signals,
    stepped,
    with_library,
)

pytestmark = needs_native

FEWER = [f for f in FORMATS if f != "float32"]


def formatted(model: SignalForecaster, chosen: WeightFormat) -> SignalForecaster:
    changed = copy.deepcopy(model)
    quantize(changed, chosen)
    return changed


def packed_format(model: SignalForecaster) -> str:
    found = model.native.usable(model)
    assert found is not None
    return found[1].format


@pytest.mark.parametrize("chosen", FEWER)
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_gives_the_bits_of_steps(
    compiled: library.Library, name: str, chosen: WeightFormat
) -> None:
    config, rows, _ = CONFIGS[name]
    model = with_library(formatted(shaken(config), chosen), compiled)
    values, dt = signals(rows)
    lengths = torch.tensor([TOKENS, 0, 1, 49, 97, 48, 2, 0, 5][:rows])
    out = model.prefill(values, model.initial_state(rows), lengths, dt)
    state, tails = stepped(model, values, lengths, dt)
    assert packed_format(model) == chosen
    assert_same(out.state, state)
    assert same_bits(out.tail, tails)


@pytest.mark.parametrize("chosen", FEWER)
@pytest.mark.parametrize("rows", [1, 2, 5, 9, 31, 70])
def test_a_row_is_computed_alike_in_any_batch(
    compiled: library.Library, chosen: WeightFormat, rows: int
) -> None:
    model = with_library(formatted(tiny_forecaster(), chosen), compiled)
    values = torch.randn(4, rows, generator=torch.Generator().manual_seed(0)).double()
    batch, alone = model.initial_state(rows + 1), model.initial_state(rows + 1)
    slots, some = torch.arange(rows, 0, -1), {0, rows // 2, rows - 1}
    for x in values:
        together = model.step_(x, batch, slots)
        for row in some:
            single = model.step_(x[row : row + 1], alone, slots[row : row + 1])
            assert same_bits(single.tail, together.tail[row : row + 1])
    for row in some:
        for name, entry in batch.items():
            assert same_bits(entry[slots[row]], alone[name][slots[row]])


def apart(ours: State, theirs: State) -> float:
    """Mean difference of the forecasts, in mean widths of the 80% interval."""
    a, b = ours["forecast"], theirs["forecast"]
    return float((a - b).abs().mean() / (b[..., -1] - b[..., 0]).mean())


@pytest.mark.parametrize("chosen", FEWER)
def test_is_close_to_torch_and_to_fp32(chosen: WeightFormat) -> None:
    model, values = pretrained.load(), signals()[0]
    fewer = formatted(model, chosen)
    exact = model.prefill(values, model.initial_state(ROWS)).state
    ours = fewer.prefill(values, model.initial_state(ROWS)).state
    theirs = fewer.prefill_torch(values, model.initial_state(ROWS)).state
    assert apart(ours, theirs) < 1e-3
    assert apart(ours, exact) < (0.02 if chosen == "int8" else 0.002)


def test_fp32_numbers_that_fit_into_fp16_are_packed_so_with_the_same_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, values = tiny_forecaster(), signals()[0]
    assert packed_format(model) == "float32"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weights.is_matrix(name, tuple(weight.shape)):
                weight.copy_(weight.half())
    assert packed_format(model) == "float16"
    halved = model.prefill(values, model.initial_state(ROWS))
    monkeypatch.setattr(weights, "_fits_half", lambda _: False)
    model.native.forget()
    assert packed_format(model) == "float32"
    whole = model.prefill(values, model.initial_state(ROWS))
    assert_same(halved.state, whole.state)
    assert same_bits(halved.tail, whole.tail)


def test_written_bytes_are_seen() -> None:
    model = formatted(tiny_forecaster(), "int8")
    found = model.native.usable(model)
    assert found == model.native.usable(model)
    model.get_buffer("backbone.blocks.1.in_proj.unit").mul_(2)
    again = model.native.usable(model)
    assert found is not None
    assert again is not None
    assert again[1] is not found[1]


def test_mixed_formats_run_in_torch() -> None:
    model = tiny_forecaster()
    quantize(model, "int8", keep={"head.out"})
    assert model.native.usable(model) is None
    assert model.step_(
        torch.ones(1).double(), model.initial_state(2), torch.tensor([1])
    ).healthy.all()


class TestHeld:
    """After ``hold`` a model loaded, moved or trained is still seen; single writes are not."""

    @pytest.fixture
    def model(self) -> SignalForecaster:
        model = tiny_forecaster().requires_grad_(False)
        model.native = NativeModel()
        model.native.hold()
        assert model.native.usable(model) is not None
        return model

    def test_single_writes_are_not_looked_for(self, model: SignalForecaster) -> None:
        before = model.native.usable(model)
        model.get_parameter("backbone.blocks.1.skip").mul_(2)
        assert model.native.usable(model) == before
        model.native.forget()
        assert model.native.usable(model) != before

    @pytest.mark.parametrize("assign", [False, True])
    def test_loading_is_seen(self, model: SignalForecaster, assign: bool) -> None:
        before = model.native.usable(model)
        model.load_state_dict(tiny_forecaster(seed=1).state_dict(), assign=assign)
        assert model.native.usable(model) != before

    def test_moving_and_training_are_seen(self, model: SignalForecaster) -> None:
        before = model.native.usable(model)
        assert model.double().native.usable(model) is None
        assert model.float().train().eval().native.usable(model) != before

    def test_shipped_models_are_held_and_their_copies_not(self) -> None:
        model = pretrained.load()
        assert model.native._held
        assert not copy.deepcopy(model).native._held


class TestKnownArena:
    """An arena is checked once; whatever else comes is checked again."""

    def step(self, model: SignalForecaster, arena: State) -> None:
        done = model.native.step_(model, torch.ones(1).double(), arena, torch.tensor([1]), None)
        assert done is not None

    def test_the_same_arena_is_checked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, checks = tiny_forecaster(), list[State]()
        monkeypatch.setattr(
            "kssm.forecast.native.checked",
            lambda w, layout, a: checks.append(a) or calls.checked(w, layout, a),
        )
        arena = model.initial_state(2)
        for _ in range(3):
            self.step(model, arena)
        self.step(model, model.initial_state(2))
        assert len(checks) == 2

    def test_a_replaced_entry_is_seen(self) -> None:
        model, arena = tiny_forecaster(), tiny_forecaster().initial_state(2)
        self.step(model, arena)
        old = arena["scaler"]
        arena["scaler"] = torch.zeros_like(old)
        count = float(old[1, 0])
        self.step(model, arena)
        assert float(old[1, 0]) == count == float(arena["scaler"][1, 0]) == 1.0

    def test_each_step_has_memory_of_its_own_for_its_outputs(self) -> None:
        model, arena = tiny_forecaster(), tiny_forecaster().initial_state(4)
        outputs = list[torch.Tensor]()
        for rows, inference in ((1, True), (3, False), (3, True), (3, False)):
            with torch.inference_mode(inference):
                slots = torch.arange(rows) + 1
                done = model.step_(torch.ones(rows).double(), arena, slots)
            for output, dtype in zip(done, (torch.float64, torch.bool), strict=True):
                assert output.shape == (rows,)
                assert output.dtype is dtype
                assert output.is_inference() == inference
            outputs += done
        assert len({output.data_ptr() for output in outputs}) == len(outputs)

    def test_an_unfit_entry_is_seen(self) -> None:
        model, arena = tiny_forecaster(), tiny_forecaster().initial_state(2)
        self.step(model, arena)
        arena["scaler"] = arena["scaler"].float()
        call = (model, torch.ones(1).double(), arena, torch.tensor([1]), None)
        assert model.native.step_(*call) is None
        del arena["scaler"]
        with pytest.raises(KeyError):
            model.native.step_(*call)

    def test_an_arena_that_is_gone_is_not_kept_alive_nor_mistaken(self) -> None:
        model = tiny_forecaster()
        arena = model.initial_state(2)
        self.step(model, arena)
        found, known = model.native.usable(model), model.native._arena
        assert found is not None
        assert known is not None
        assert known.is_still(found[1], found[1].single, arena)
        again = {name: entry.clone() for name, entry in arena.items()}
        del arena
        gc.collect()
        assert not known.is_still(found[1], found[1].single, again)
        assert known._ids is None


class TestCheckpoints:
    @pytest.mark.parametrize("chosen", FEWER)
    def test_quantized_weights_are_saved_and_loaded(
        self, tmp_path: Path, chosen: WeightFormat
    ) -> None:
        model = formatted(tiny_forecaster(), chosen)
        pretrained.save(model, tmp_path, half=False)
        loaded = pretrained.load(tmp_path)
        assert format_of(loaded) == chosen
        assert loaded.fingerprint == model.fingerprint
        x, state = signals()[0], model.initial_state(ROWS)
        assert_same(loaded.prefill(x, state).state, model.prefill(x, state).state)
        assert pretrained.load(tmp_path, weights=chosen).fingerprint == model.fingerprint

    def test_formats_are_chosen_when_loading(self, tmp_path: Path) -> None:
        pretrained.save(tiny_forecaster(), tmp_path)
        prints = {
            chosen: Forecaster.from_pretrained(tmp_path, weights=chosen).model.fingerprint
            for chosen in FORMATS
        }
        assert len(set(prints.values())) == len(FORMATS)
        plain = Forecaster.from_pretrained(tmp_path).model
        assert plain.fingerprint == prints["float32"]
        assert format_of(plain) == "float32"

    def test_bytes_do_not_become_numbers_again(self, tmp_path: Path) -> None:
        pretrained.save(formatted(tiny_forecaster(), "int8"), tmp_path)
        with pytest.raises(InvalidInputError) as raised:
            pretrained.load(tmp_path, weights="float32")
        assert raised.value.code == "invalid_weights"

    def test_files_of_another_format_are_refused(self, tmp_path: Path) -> None:
        pretrained.save(formatted(tiny_forecaster(), "int8"), tmp_path)
        config = tmp_path / "config.json"
        config.write_text(config.read_text().replace('"int8"', '"float16"'))
        with pytest.raises(CheckpointError, match=r"unexpected .*unit"):
            pretrained.load(tmp_path)
        config.write_text(config.read_text().replace('"float16"', '"int4"'))
        with pytest.raises(InvalidInputError) as raised:
            pretrained.load(tmp_path)
        assert raised.value.code == "invalid_weights"
