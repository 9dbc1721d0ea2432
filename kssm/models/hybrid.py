"""Hybrids: layers of different models one after another in one stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from kssm.errors import InvalidInputError
from kssm.models.kssm import KSSMBlock, KSSMConfig
from kssm.models.kssm_matrix import KSSMMatrixBlock, KSSMMatrixConfig
from kssm.models.layers import RMSNorm
from kssm.models.mamba import MambaBlock, MambaConfig
from kssm.models.mamba2 import Mamba2Block, Mamba2Config
from kssm.models.rwkv4 import RWKV4Block, RWKV4Config
from kssm.models.rwkv6 import RWKV6Block, RWKV6Config
from kssm.models.s4d import S4DBlock, S4DConfig
from kssm.models.stack import Block, Stack, StackConfig
from kssm.models.transformer import TransformerBlock, TransformerConfig

LAYERS: Mapping[str, type[StackConfig]] = MappingProxyType(
    {
        "kssm": KSSMConfig,
        "kssm_matrix": KSSMMatrixConfig,
        "mamba": MambaConfig,
        "mamba2": Mamba2Config,
        "rwkv4": RWKV4Config,
        "rwkv6": RWKV6Config,
        "s4d": S4DConfig,
        "transformer": TransformerConfig,
    }
)
"""Kinds of layers a hybrid may have."""


def layer_preset(kind: str, name: str) -> StackConfig:
    """The configuration ``name`` (tiny, small, base or large) of a kind of layer.

    Raises InvalidInputError, codes ``unknown_model`` and ``unknown_preset``.
    """
    if kind not in LAYERS:
        raise InvalidInputError(
            f"no layer {kind!r}, only {', '.join(LAYERS)}", code="unknown_model"
        )
    return LAYERS[kind].preset(name)


@dataclass(frozen=True)
class HybridConfig(StackConfig):
    """Layers of a hybrid.

    Attributes:
        pattern: kinds of the layers, from the first on; repeated until there are ``n_layers``.
        layers: sizes of each kind (its preset "base" when absent); their ``d_model`` and
            ``n_layers`` give way to the hybrid's.
    """

    d_model: int = 256
    n_layers: int = 7
    pattern: Sequence[str] = ("kssm", "kssm", "transformer")
    layers: Mapping[str, StackConfig] = field(default_factory=dict[str, StackConfig])

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 48, "n_layers": 3},
        "small": {"d_model": 128, "n_layers": 4},
        "base": {"d_model": 256, "n_layers": 7},
        "large": {"d_model": 512, "n_layers": 11},
    }

    @classmethod
    def preset(cls, name: str, pattern: Sequence[str] = ("kssm", "kssm", "transformer")) -> Self:
        """The hybrid of the layers' presets called ``name``."""
        sizes = super().preset(name)
        layers = {kind: layer_preset(kind, name) for kind in dict.fromkeys(pattern)}
        return replace(sizes, pattern=pattern, layers=layers)

    def __post_init__(self) -> None:
        self.require(min(self.d_model, self.n_layers) >= 1, "sizes must be positive")
        self.require(len(self.pattern) > 0, "the pattern is empty")
        self.require(not isinstance(self.pattern, str), "the pattern is a list of names")
        unknown = sorted({*self.pattern, *self.layers} - LAYERS.keys())
        self.require(not unknown, f"no layers {unknown}, only {', '.join(LAYERS)}")
        for kind, config in self.layers.items():
            expected = LAYERS[kind].__name__
            self.require(isinstance(config, LAYERS[kind]), f"{kind} needs a {expected}")
        object.__setattr__(self, "pattern", tuple(self.pattern))

    def layer(self, index: int) -> StackConfig:
        """The configuration of layer ``index``."""
        kind = self.pattern[index % len(self.pattern)]
        config = self.layers[kind] if kind in self.layers else layer_preset(kind, "base")
        return replace(config, d_model=self.d_model, n_layers=self.n_layers)


class Hybrid(Stack):
    """A stack of layers of several kinds with a final RMS norm."""

    def __init__(self, config: HybridConfig, *, gradient_checkpointing: bool = False) -> None:
        blocks = [_block(config.layer(index), index) for index in range(config.n_layers)]
        super().__init__(
            config.d_model,
            blocks,
            RMSNorm(config.d_model),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config


_BLOCKS: Mapping[type[StackConfig], Callable[[Any], Block]] = MappingProxyType(
    {
        KSSMConfig: KSSMBlock,
        KSSMMatrixConfig: KSSMMatrixBlock,
        MambaConfig: MambaBlock,
        Mamba2Config: Mamba2Block,
        S4DConfig: S4DBlock,
        TransformerConfig: TransformerBlock,
    }
)


def _block(config: StackConfig, index: int) -> Block:
    if isinstance(config, RWKV4Config):
        return RWKV4Block(config, index)
    if isinstance(config, RWKV6Config):
        return RWKV6Block(config, index)
    if type(config) not in _BLOCKS:
        raise InvalidInputError(f"no layer of {type(config).__name__}", code="invalid_config")
    return _BLOCKS[type(config)](config)
