"""RWKV-6 under its authors' Hugging Face names, against the equations written in those names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.checkpoint import write_tensors
from kssm.language import load, save_hugging_face
from tests.models.peers import relative_error

WIDTH, SIZE, HIDDEN, VOCABULARY, LAYERS = 12, 4, 20, 19, 2
CONFIG: dict[str, Any] = {
    "model_type": "rwkv6",
    "hidden_size": WIDTH,
    "attention_hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "head_size": SIZE,
    "intermediate_size": HIDDEN,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
Weights = dict[str, Tensor]


def weights() -> Weights:
    """Random weights in the names and shapes of the published checkpoints."""
    make = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.4) -> Tensor:
        return scale * torch.randn(*shape, generator=make)

    found = {
        "rwkv.embeddings.weight": random(VOCABULARY, WIDTH, scale=1.0),
        "head.weight": random(VOCABULARY, WIDTH),
    }
    for name in ("blocks.0.pre_ln", "ln_out"):
        found |= {f"rwkv.{name}.weight": 1 + random(WIDTH), f"rwkv.{name}.bias": random(WIDTH)}
    for i in range(LAYERS):
        block = f"rwkv.blocks.{i}"
        attention, feed = f"{block}.attention", f"{block}.feed_forward"
        for name in (f"{block}.ln1", f"{block}.ln2", f"{attention}.ln_x"):
            found |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
        for name in "xwkvrg":
            found[f"{attention}.time_maa_{name}"] = random(1, 1, WIDTH)
        found |= {
            f"{attention}.time_maa_w1": random(WIDTH, 5 * 32),
            f"{attention}.time_maa_w2": random(5, 32, WIDTH, scale=0.1),
            f"{attention}.time_decay": random(1, 1, WIDTH),
            f"{attention}.time_decay_w1": random(WIDTH, 64),
            f"{attention}.time_decay_w2": random(64, WIDTH, scale=0.1),
            f"{attention}.time_faaaa": random(WIDTH // SIZE, SIZE),
            f"{feed}.time_maa_k": random(1, 1, WIDTH),
            f"{feed}.time_maa_r": random(1, 1, WIDTH),
            f"{feed}.key.weight": random(HIDDEN, WIDTH),
            f"{feed}.receptance.weight": random(WIDTH, WIDTH),
            f"{feed}.value.weight": random(WIDTH, HIDDEN),
        }
        for name in ("receptance", "key", "value", "gate", "output"):
            found[f"{attention}.{name}.weight"] = random(WIDTH, WIDTH)
    return found


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attention(w: Weights, p: str, x: Tensor) -> Tensor:
    """x [T, D] of one row from nothing."""
    delta = F.pad(x, (0, 0, 1, 0))[:-1] - x
    base = x + delta * w[f"{p}.time_maa_x"][0]
    low = torch.tanh(base @ w[f"{p}.time_maa_w1"]).view(-1, 5, 32)
    shift = torch.einsum("tsr,srd->std", low, w[f"{p}.time_maa_w2"])
    mixed = {
        name: x + delta * (w[f"{p}.time_maa_{name}"][0] + shift[i])
        for i, name in enumerate("wkvrg")
    }
    low = torch.tanh(mixed["w"] @ w[f"{p}.time_decay_w1"]) @ w[f"{p}.time_decay_w2"]
    decay = torch.exp(-torch.exp(w[f"{p}.time_decay"][0] + low)).view(-1, WIDTH // SIZE, SIZE)
    names = {"r": "receptance", "k": "key", "v": "value"}
    r, k, v = ((mixed[s] @ w[f"{p}.{n}.weight"].T).view_as(decay) for s, n in names.items())
    state, outputs = x.new_zeros(WIDTH // SIZE, SIZE, SIZE), []
    for t in range(len(x)):
        outer = k[t, :, :, None] * v[t, :, None, :]
        outputs.append(
            (r[t, :, :, None] * (state + w[f"{p}.time_faaaa"][..., None] * outer)).sum(1)
        )
        state = decay[t, :, :, None] * state + outer
    y = torch.stack(outputs).flatten(1)
    y = F.group_norm(y, WIDTH // SIZE, w[f"{p}.ln_x.weight"], w[f"{p}.ln_x.bias"], 64e-5)
    return (y * F.silu(mixed["g"] @ w[f"{p}.gate.weight"].T)) @ w[f"{p}.output.weight"].T


def feed_forward(w: Weights, p: str, x: Tensor) -> Tensor:
    delta = F.pad(x, (0, 0, 1, 0))[:-1] - x
    key = (x + delta * w[f"{p}.time_maa_k"][0]) @ w[f"{p}.key.weight"].T
    gate = (x + delta * w[f"{p}.time_maa_r"][0]) @ w[f"{p}.receptance.weight"].T
    return torch.sigmoid(gate) * (F.relu(key) ** 2 @ w[f"{p}.value.weight"].T)


def reference(w: Weights, tokens: Tensor) -> Tensor:
    """Logits [T, V] of one text, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x = norm(w, "rwkv.blocks.0.pre_ln", w["rwkv.embeddings.weight"][tokens])
    for i in range(LAYERS):
        block = f"rwkv.blocks.{i}"
        x = x + attention(w, f"{block}.attention", norm(w, f"{block}.ln1", x))
        x = x + feed_forward(w, f"{block}.feed_forward", norm(w, f"{block}.ln2", x))
    return norm(w, "rwkv.ln_out", x) @ w["head.weight"].T


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    write_tensors(path, weights(), 4_000)
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def test_logits_are_those_of_the_equations(folder: Path) -> None:
    model = load(folder)
    tokens = torch.randint(VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([reference(weights(), row) for row in tokens]).float()
    assert relative_error(model(tokens)[0], expected) <= 1e-5
    _, state = model(tokens[:, :11])
    arena = {name: torch.cat([entry[:1], entry]) for name, entry in state.items()}
    slots = torch.tensor([1, 2])
    stepped = [model.step_(tokens[:, t], arena, slots) for t in range(11, 30)]
    assert relative_error(torch.stack(stepped, dim=1), expected[:, 11:]) <= 1e-5


def test_saving_back_gives_the_same_bits(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = load(folder)
    save_hugging_face(model, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    given = weights()
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)
    assert load(tmp_path / "back").fingerprint == model.fingerprint
