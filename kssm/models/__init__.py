"""Sequence models that carry an explicit state; see ``base`` for the contract they share."""

from kssm.models.base import SequenceModel, State, StateSpec
from kssm.models.hybrid import Hybrid, HybridConfig
from kssm.models.kssm import KSSM, KSSMConfig, nuclear_init
from kssm.models.kssm_layer import KSSMLayer
from kssm.models.kssm_matrix import KSSMMatrix, KSSMMatrixConfig
from kssm.models.mamba import Mamba, MambaConfig
from kssm.models.mamba2 import Mamba2, Mamba2Config
from kssm.models.registry import MODELS, PRESETS, build
from kssm.models.rwkv4 import RWKV4, RWKV4Config
from kssm.models.rwkv6 import RWKV6, RWKV6Config
from kssm.models.s4d import S4D, S4DConfig
from kssm.models.stateful import StatefulModel
from kssm.models.transformer import Transformer, TransformerConfig

__all__ = [
    "KSSM",
    "MODELS",
    "PRESETS",
    "RWKV4",
    "RWKV6",
    "S4D",
    "Hybrid",
    "HybridConfig",
    "KSSMConfig",
    "KSSMLayer",
    "KSSMMatrix",
    "KSSMMatrixConfig",
    "Mamba",
    "Mamba2",
    "Mamba2Config",
    "MambaConfig",
    "RWKV4Config",
    "RWKV6Config",
    "S4DConfig",
    "SequenceModel",
    "State",
    "StateSpec",
    "StatefulModel",
    "Transformer",
    "TransformerConfig",
    "build",
    "nuclear_init",
]
