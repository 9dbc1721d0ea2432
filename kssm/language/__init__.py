"""Language models: any backbone under an output layer, with generation at constant cost."""

from kssm.language.config import LanguageConfig
from kssm.language.generation import Piece
from kssm.language.model import KSSMLMHeadModel, LanguageModel
from kssm.language.pretrained import load, save, save_hugging_face
from kssm.language.sampling import Sampling

__all__ = [
    "KSSMLMHeadModel",
    "LanguageConfig",
    "LanguageModel",
    "Piece",
    "Sampling",
    "load",
    "save",
    "save_hugging_face",
]
