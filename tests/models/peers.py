"""Running our Mamba models and those of ``transformers`` on the same weights and tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kssm.checkpoint.names import NameMap
from kssm.models.base import SequenceModel, State

LAYERS, ROWS = 3, 2
TOLERANCE = 1e-5

Weights = dict[str, Tensor]


def transformers() -> Any:
    """The package, or a skipped test with the reason."""
    return pytest.importorskip("transformers", "5.23", "the reference is transformers >= 5.23")


def tokens(length: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(ROWS, length, width, generator=torch.Generator().manual_seed(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every weight moved off its initial value, ready to compare."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 * float(parameter.abs().mean()) + 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def weights_of(theirs: nn.Module) -> Weights:
    """Their weights without the embedding, which our stacks do not have."""
    return {name: w for name, w in theirs.state_dict().items() if "embeddings" not in name}


def same_weights(ours: SequenceModel, theirs: nn.Module, names: NameMap) -> SequenceModel:
    ours.load_state_dict(names.load(weights_of(theirs), LAYERS))
    return ours.eval().requires_grad_(False)


def their_steps(theirs: nn.Module, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """One call a token; outputs and the cache after them."""
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        out = theirs(inputs_embeds=x[:, t : t + 1], cache_params=cache, use_cache=True)
        cache = out.cache_params
        outputs.append(out.last_hidden_state)
    return torch.cat(outputs, dim=1), cache


def our_steps(ours: SequenceModel, x: Tensor, state: State) -> tuple[Tensor, State]:
    """``step_`` token by token in an arena; outputs and the state after them."""
    slots = torch.tensor([3, 1])
    arena = ours.initial_state(5)
    for name, entry in state.items():
        arena[name][slots] = entry
    outputs = [ours.step_(x[:, t], arena, slots) for t in range(x.shape[1])]
    return torch.stack(outputs, dim=1), {name: entry[slots] for name, entry in arena.items()}


def assert_same_states(state: State, cache: Any) -> None:
    for i in range(LAYERS):
        theirs = cache.get_recurrent_state(i, state_idx=0)
        assert relative_error(state[f"layers.{i}.state"], theirs) <= TOLERANCE, i
