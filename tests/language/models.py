"""Language models small enough for tests: one of each architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kssm.language import KSSMLMHeadModel, LanguageConfig, LanguageModel
from kssm.models.hybrid import HybridConfig
from kssm.models.kssm import KSSMConfig
from kssm.models.kssm_matrix import KSSMMatrixConfig
from kssm.models.mamba import MambaConfig
from kssm.models.mamba2 import Mamba2Config
from kssm.models.rwkv4 import RWKV4Config
from kssm.models.rwkv6 import RWKV6Config
from kssm.models.s4d import S4DConfig
from kssm.models.stack import StackConfig
from kssm.models.transformer import TransformerConfig

VOCABULARY = 40
WIDTH = 16

_KSSM = KSSMConfig(d_model=WIDTH, n_layers=2, d_inner=16, d_mlp=16, rank=4, group_size=8)
_TRANSFORMER = TransformerConfig(
    d_model=WIDTH, n_layers=2, n_heads=2, n_kv_heads=1, head_size=8, d_mlp=24, window=24
)
BACKBONES: dict[str, StackConfig] = {
    "kssm": _KSSM,
    "kssm_matrix": KSSMMatrixConfig(
        d_model=WIDTH, n_layers=2, d_inner=16, head_dim=8, pairs=4, d_mlp=16
    ),
    "mamba": MambaConfig(d_model=WIDTH, n_layers=2, d_inner=32, d_state=4, rank=2),
    "mamba2": Mamba2Config(d_model=WIDTH, n_layers=2, d_inner=32, head_dim=8, d_state=8),
    "rwkv4": RWKV4Config(d_model=WIDTH, n_layers=2, d_inner=24, d_ffn=32, input_norm=True),
    "rwkv6": RWKV6Config(
        d_model=WIDTH,
        n_layers=2,
        head_size=8,
        d_ffn=32,
        mix_rank=4,
        decay_rank=4,
        input_norm=True,
    ),
    "s4d": S4DConfig(d_model=WIDTH, n_layers=2, d_state=8, d_mlp=16),
    "transformer": _TRANSFORMER,
    "hybrid": HybridConfig(
        d_model=WIDTH,
        n_layers=2,
        pattern=("kssm", "transformer"),
        layers={"kssm": _KSSM, "transformer": _TRANSFORMER},
    ),
}


def tiny_language_model(name: str = "kssm", *, tied: bool = True, seed: int = 0) -> LanguageModel:
    """Deterministic random weights, livelier than fresh ones, in evaluation mode."""
    config = LanguageConfig(BACKBONES[name], VOCABULARY, tied, eos_tokens=(0,))
    kind = KSSMLMHeadModel if name == "kssm" else LanguageModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            model.embedding.weight.mul_(3.0)
        return model.eval().requires_grad_(False)


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, length), generator=make)


def word_tokenizer() -> Any:
    """A ``tokenizers.Tokenizer`` whose token i is the word "wi"; skips without the package."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made
