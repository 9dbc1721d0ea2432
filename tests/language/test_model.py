"""Language models over every backbone: state, precision, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kssm.checkpoint import convert_
from kssm.errors import CheckpointError, InvalidInputError
from kssm.language import KSSMLMHeadModel, LanguageConfig, LanguageModel, load, save
from kssm.models import StatefulModel
from tests.language.models import BACKBONES, VOCABULARY, tiny_language_model, tokens


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((actual - expected).abs().max() / expected.abs().max()) <= tolerance


@pytest.fixture(params=BACKBONES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param, tied=request.param != "mamba")


def test_forward_prefill_and_steps_agree(model: LanguageModel) -> None:
    x = tokens(2, 40)
    logits, end = model(x)
    assert logits.shape == (2, 40, VOCABULARY)
    last, state = model.prefill(x[:, :25])
    assert close(last, logits[:, 24])
    slots = torch.tensor([3, 1])
    arena = model.initial_state(4)
    for name, entry in state.items():
        arena[name][slots] = entry
    stepped = torch.stack([model.step_(x[:, t], arena, slots) for t in range(25, 40)], dim=1)
    assert close(stepped, logits[:, 25:])
    resumed, after = model(x[:, 25:], state)
    assert close(resumed, logits[:, 25:])
    for name, entry in end.items():
        assert torch.allclose(after[name], entry, rtol=1e-4, atol=1e-5), name


def test_ragged_rows_end_like_rows_alone(model: LanguageModel) -> None:
    x, lengths = tokens(3, 20), torch.tensor([20, 3, 11])
    together = model.prefill(x, None, lengths).logits
    for row, length in enumerate(lengths.tolist()):
        assert close(together[row], model.prefill(x[row : row + 1, :length]).logits[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_recurrence_wide(model: LanguageModel, dtype: torch.dtype) -> None:
    x = tokens(2, 60)
    expected, _ = model(x)
    convert_(model, dtype)
    assert model.embedding.weight.dtype == dtype
    narrow = {name for name, p in model.named_parameters() if p.dtype == dtype}
    assert all("norm" not in name and "a_log" not in name for name in narrow)
    assert all(entry.dtype == torch.float32 for entry in model.initial_state(1).values())
    logits, state = model(x)
    assert logits.dtype == torch.float32
    limit = 0.06 if dtype == torch.bfloat16 else 0.01
    assert float((logits - expected).norm() / expected.norm()) <= limit
    arena = {name: torch.cat([entry[:1] * 0, entry]) for name, entry in state.items()}
    stepped = model.step_(x[:, 0], arena, torch.tensor([1, 2]))
    longer, _ = model(torch.cat([x, x[:, :1]], dim=1))
    assert float((stepped - longer[:, -1]).norm() / longer[:, -1].norm()) <= limit


def test_double_precision(model: LanguageModel) -> None:
    x = tokens(1, 12)
    expected, _ = model(x)
    convert_(model, torch.float64)
    logits, _ = model(x)
    assert logits.dtype == torch.float64
    assert close(logits.float(), expected)


@pytest.mark.parametrize("shard", [None, 2_000])
def test_a_folder_holds_the_whole_model(
    model: LanguageModel, tmp_path: Path, shard: int | None
) -> None:
    save(model, tmp_path, max_shard_bytes=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard is not None)
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert not loaded.training


def test_states_can_be_taken_and_put_back(model: LanguageModel) -> None:
    stateful = StatefulModel(model.backbone, 2)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    first = stateful.step(x)
    kept = stateful.get_states()
    second = stateful.step(x)
    stateful.set_states(kept)
    assert torch.equal(stateful.step(x), second)
    stateful.reset()
    assert torch.equal(stateful.step(x), first)


def test_gradients_reach_every_weight() -> None:
    model = tiny_language_model("kssm", tied=False).train().requires_grad_(True)
    logits, _ = model(tokens(2, 9))
    logits.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_configurations_are_checked() -> None:
    with pytest.raises(InvalidInputError) as error:
        LanguageConfig(BACKBONES["kssm"], 10, eos_tokens=(10,))
    assert error.value.code == "invalid_config"
    with pytest.raises(InvalidInputError):
        LanguageConfig(BACKBONES["kssm"], 0)
    with pytest.raises(InvalidInputError):
        KSSMLMHeadModel(LanguageConfig(BACKBONES["mamba"], 10))


@pytest.mark.parametrize("change", [{"format": 2}, {"model": "gpt"}, {"extra": 1}])
def test_a_malformed_configuration(tmp_path: Path, change: dict[str, object]) -> None:
    import json

    save(tiny_language_model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError):
        load(tmp_path)
