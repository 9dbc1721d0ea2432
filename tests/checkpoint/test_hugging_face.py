"""Language models that ``transformers`` wrote: one call loads them, and they say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kssm.checkpoint import TensorFolder, from_hugging_face, to_hugging_face
from kssm.errors import CheckpointError
from kssm.language import LanguageModel, load, save_hugging_face
from tests.models.peers import relative_error, shaken, transformers

VOCABULARY, TOLERANCE = 37, 1e-5
ATTENTION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
PEERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "mamba": (
        "Mamba",
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "vocab_size": VOCABULARY},
        None,
    ),
    "mamba-untied": (
        "Mamba",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
        },
        "2KB",
    ),
    "mamba2": (
        "Mamba2",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 2,
            "vocab_size": VOCABULARY,
        },
        "2KB",
    ),
    "rwkv": (
        "Rwkv",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "vocab_size": VOCABULARY,
        },
        "2KB",
    ),
    "llama": ("Llama", {**ATTENTION, "head_dim": 6, "rope_theta": 500.0}, "2KB"),
    "llama-tied": ("Llama", {**ATTENTION, "tie_word_embeddings": True}, None),
    "mistral": ("Mistral", {**ATTENTION, "head_dim": 6, "sliding_window": 7}, None),
    "qwen2": ("Qwen2", {**ATTENTION}, None),
}


class Pair(NamedTuple):
    ours: LanguageModel
    theirs: Any
    folder: Path


@pytest.fixture(scope="module", params=PEERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(0)
    peer = transformers()
    name, settings, shard = PEERS[request.param]
    config = getattr(peer, f"{name}Config")(**settings)
    theirs: Any = shaken(getattr(peer, f"{name}ForCausalLM")(config))
    for parameter, weight in theirs.named_parameters():
        if "q_proj" in parameter or "k_proj" in parameter:
            weight.mul_(5.0)  # fresh weights attend to all alike, and would not show positions
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard is not None)
    return Pair(load(folder), theirs, folder)


def tokens(length: int) -> Tensor:
    make = torch.Generator().manual_seed(length)
    return torch.randint(VOCABULARY, (2, length), generator=make)


def their_logits(theirs: Any, x: Tensor) -> Tensor:
    """Row by row: their RWKV mixes up the rows of a batch when it gets a single token."""
    return torch.cat([theirs(row).logits for row in x.split(1)])


def their_steps(theirs: Any, x: Tensor, cut: int) -> Tensor:
    """Logits after token ``cut`` on, one call a token behind one for those before."""
    kind = type(theirs).__name__
    name = "state" if "Rwkv" in kind else "cache_params" if "Mamba" in kind else "past_key_values"
    rows: list[Tensor] = []
    for row in x.split(1):
        out = theirs(row[:, :cut], use_cache=True)
        parts: list[Tensor] = []
        for t in range(cut, x.shape[1]):
            out = theirs(row[:, t : t + 1], **{name: getattr(out, name)}, use_cache=True)
            parts.append(out.logits)
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def our_steps(ours: LanguageModel, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    arena = ours.initial_state(3)
    for name, entry in state.items():
        arena[name][1:] = entry
    slots = torch.tensor([1, 2])
    return torch.stack([ours.step_(x[:, t], arena, slots) for t in range(x.shape[1])], dim=1)


@pytest.mark.parametrize("length", [1, 60])
def test_logits_from_nothing(pair: Pair, length: int) -> None:
    x = tokens(length)
    expected = their_logits(pair.theirs, x)
    assert relative_error(pair.ours(x)[0], expected) <= TOLERANCE
    stepped = our_steps(pair.ours, x, pair.ours.initial_state(2))
    assert relative_error(stepped, expected) <= TOLERANCE


@pytest.mark.parametrize("cut", [1, 40])
def test_logits_after_a_carried_state(pair: Pair, cut: int) -> None:
    x = tokens(60)
    expected = their_steps(pair.theirs, x, cut)
    _, state = pair.ours(x[:, :cut])
    assert relative_error(pair.ours(x[:, cut:], state)[0], expected) <= TOLERANCE
    assert relative_error(our_steps(pair.ours, x[:, cut:], state), expected) <= TOLERANCE


def weights(folder: Path) -> dict[str, Tensor]:
    with TensorFolder(folder) as file:
        return {name: file.get(name) for name in file}


@pytest.mark.parametrize("shard", [None, 3_000])
def test_saving_back_gives_the_same_bits(pair: Pair, tmp_path: Path, shard: int | None) -> None:
    save_hugging_face(pair.ours, tmp_path, max_shard_bytes=shard)
    given, back = weights(pair.folder), weights(tmp_path)
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)
    assert load(tmp_path).fingerprint == pair.ours.fingerprint
    reread = transformers().AutoModelForCausalLM.from_pretrained(tmp_path)
    x = tokens(30)
    assert relative_error(reread(x).logits.detach(), pair.theirs(x).logits) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_there_and_back(pair: Pair, tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    save_hugging_face(pair.ours, first, dtype=dtype)
    assert {tensor.dtype for tensor in weights(first).values()} == {dtype}
    loaded = load(first, dtype=dtype)
    assert loaded.embedding.weight.dtype == dtype
    save_hugging_face(loaded, second, dtype=dtype)
    given, back = weights(first), weights(second)
    assert all(torch.equal(back[name], given[name]) for name in given)


def test_what_ends_a_text_is_read(pair: Pair) -> None:
    eos = pair.theirs.config.eos_token_id
    assert pair.ours.config.eos_tokens == (() if eos is None else (eos,))
    assert pair.ours.config.bos_token == pair.theirs.config.bos_token_id


def test_the_generation_config_may_name_more_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = transformers()
    peer.LlamaForCausalLM(peer.LlamaConfig(**ATTENTION)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert load(tmp_path).config.eos_tokens == (3, 4)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="generation_config"):
        load(tmp_path)


def test_a_copy_of_a_tied_embedding_may_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    peer = transformers()
    peer.MambaForCausalLM(peer.MambaConfig(**PEERS["mamba"][1])).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
    save_file(tensors, path)
    load(tmp_path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs"):
        load(tmp_path)


def test_a_window_can_be_narrowed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = transformers()
    peer.LlamaForCausalLM(peer.LlamaConfig(**ATTENTION)).save_pretrained(tmp_path)
    whole, narrow = load(tmp_path), load(tmp_path, window=8)
    x = tokens(20)
    assert torch.equal(whole(x[:, :8])[0], narrow(x[:, :8])[0])
    assert not torch.equal(whole(x)[0], narrow(x)[0])
    assert whole.state_spec()["layers.0.keys"][0][0] == 2048
    assert narrow.state_spec()["layers.0.keys"][0][0] == 8


BASE: dict[str, Any] = {**ATTENTION, "model_type": "llama"}
MAMBA2: dict[str, Any] = {**PEERS["mamba2"][1], "model_type": "mamba2"}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gpt2"}, ["gpt2", "llama"]),
        ({**BASE, "hidden_act": "gelu", "mlp_bias": True}, ["hidden_act", "mlp_bias"]),
        ({**BASE, "attention_bias": True}, ["attention_bias"]),
        ({**BASE, "rope_scaling": {"rope_type": "yarn"}}, ["yarn"]),
        ({**BASE, "rope_parameters": {"rope_type": "llama3"}}, ["llama3"]),
        ({**BASE, "vocab_size": 0, "hidden_size": "16"}, ["vocab_size", "hidden_size"]),
        ({**BASE, "rms_norm_eps": "small"}, ["rms_norm_eps"]),
        (
            {**BASE, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
            ["sliding window"],
        ),
        ({**MAMBA2, "time_step_limit": [0.1, 1.0]}, ["time_step_limit"]),
        ({**MAMBA2, "use_bias": True}, ["use_bias"]),
    ],
)
def test_settings_we_cannot_honour_are_named(config: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(CheckpointError) as error:
        from_hugging_face(config)
    assert error.value.code == "unsupported_checkpoint"
    for part in named:
        assert part in error.value.message


def test_models_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    from tests.language.models import tiny_language_model

    with pytest.raises(CheckpointError) as error:
        save_hugging_face(tiny_language_model("s4d"), tmp_path)
    assert error.value.code == "unsupported_checkpoint"


@pytest.mark.parametrize("limits", [[0.0, float("inf")], [0.0, {"__float__": "Infinity"}]])
def test_mamba2_without_limits_on_its_steps(limits: list[Any]) -> None:
    found = from_hugging_face({**MAMBA2, "time_step_limit": limits})
    assert from_hugging_face(json.loads(json.dumps(to_hugging_face(found)))) == found
