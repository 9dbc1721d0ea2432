"""What the contract's suites build and compare: small models of every kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kssm.models import KSSM, KSSMConfig, SequenceModel, State
from kssm.models.hybrid import Hybrid, HybridConfig
from kssm.models.kssm_matrix import KSSMMatrix, KSSMMatrixConfig
from kssm.models.mamba import Mamba, MambaConfig
from kssm.models.mamba2 import Mamba2, Mamba2Config
from kssm.models.rwkv4 import RWKV4, RWKV4Config
from kssm.models.rwkv6 import RWKV6, RWKV6Config
from kssm.models.s4d import S4D, S4DConfig
from kssm.models.stack import StackConfig
from kssm.models.transformer import Transformer, TransformerConfig

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def kssm_model() -> SequenceModel:
    return KSSM(KSSMConfig(d_model=16, n_layers=2, d_inner=24, d_mlp=16, rank=3, group_size=8))


def kssm_without_mlp() -> SequenceModel:
    return KSSM(KSSMConfig(d_model=16, n_layers=2, d_inner=24, d_mlp=0, rank=3, group_size=8))


def kssm_matrix_model() -> SequenceModel:
    sizes = KSSMMatrixConfig(
        d_model=16, n_layers=2, d_inner=24, head_dim=6, pairs=3, groups=2, d_mlp=16
    )
    return KSSMMatrix(sizes)


def mamba_model() -> SequenceModel:
    return Mamba(MambaConfig(d_model=16, n_layers=2, d_inner=24, d_state=5, rank=3))


def mamba2_model() -> SequenceModel:
    sizes = Mamba2Config(d_model=16, n_layers=2, d_inner=24, head_dim=6, d_state=5, groups=2)
    return Mamba2(sizes)


def s4d_model() -> SequenceModel:
    return S4D(S4DConfig(d_model=16, n_layers=2, d_state=5, d_mlp=16))


def s4d_bilinear() -> SequenceModel:
    config = S4DConfig(d_model=16, n_layers=2, d_state=5, d_mlp=0, discretization="bilinear")
    return S4D(config)


def rwkv6_model() -> SequenceModel:
    config = RWKV6Config(d_model=16, n_layers=2, head_size=4, d_ffn=24, mix_rank=3, decay_rank=3)
    return RWKV6(config)


def rwkv4_model() -> SequenceModel:
    return RWKV4(RWKV4Config(d_model=16, n_layers=2, d_inner=24, d_ffn=24))


def transformer_model() -> SequenceModel:
    config = TransformerConfig(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_size=6, d_mlp=24, window=10
    )
    return Transformer(config)


def hybrid_model() -> SequenceModel:
    layers: dict[str, StackConfig] = {
        "kssm": KSSMConfig(d_inner=24, d_mlp=0, rank=3, group_size=8),
        "transformer": TransformerConfig(n_heads=2, n_kv_heads=1, head_size=4, d_mlp=16, window=10),
    }
    pattern = ("kssm", "kssm", "transformer")
    return Hybrid(HybridConfig(d_model=16, n_layers=3, pattern=pattern, layers=layers))


def hybrid_of_the_others() -> SequenceModel:
    layers: dict[str, StackConfig] = {
        "kssm_matrix": KSSMMatrixConfig(d_inner=16, head_dim=8, pairs=4, d_mlp=0),
        "mamba": MambaConfig(d_inner=24, d_state=5, rank=3),
        "mamba2": Mamba2Config(d_inner=24, head_dim=6, d_state=5, groups=2),
        "rwkv4": RWKV4Config(d_inner=16, d_ffn=24),
        "rwkv6": RWKV6Config(head_size=4, d_ffn=24, mix_rank=3, decay_rank=3),
        "s4d": S4DConfig(d_state=5, d_mlp=0),
    }
    return Hybrid(HybridConfig(d_model=16, n_layers=6, pattern=list(layers), layers=layers))


BUILDERS: list[Callable[[], SequenceModel]] = [
    *(kssm_model, kssm_without_mlp, kssm_matrix_model),
    *(mamba_model, mamba2_model, s4d_model, s4d_bilinear),
    *(rwkv4_model, rwkv6_model, transformer_model),
    *(hybrid_model, hybrid_of_the_others),
]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) + 1e-30
    worst = float((actual - expected).abs().max()) / scale
    assert worst <= TOLERANCE[expected.dtype], worst


def assert_states_close(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, entry in expected.items():
        assert_close(actual[name], entry)


def arena_of(model: SequenceModel, state: State, slots: Tensor, size: int = 8) -> State:
    arena = model.initial_state(size)
    for name, entry in state.items():
        noise = torch.randn(arena[name].shape, generator=torch.Generator().manual_seed(3))
        arena[name].copy_(noise)
        arena[name][slots] = entry
    return arena


def run_steps(
    model: SequenceModel, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
) -> Tensor:
    steps = range(x.shape[1])
    outputs = [model.step_(x[:, t], arena, slots, None if dt is None else dt[:, t]) for t in steps]
    return torch.stack(outputs, dim=1)
