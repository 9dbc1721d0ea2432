"""Checkpoints on disk: folders of ``config.json`` and safetensors, ours or Hugging Face's."""

from kssm.checkpoint.files import fingerprint, read_config, save_model, write_config
from kssm.checkpoint.folder import TensorFolder, write_tensors
from kssm.checkpoint.hugging_face import Translation, from_hugging_face, to_hugging_face
from kssm.checkpoint.loading import Naming, load_weights
from kssm.checkpoint.precision import DTYPES, convert_

__all__ = [
    "DTYPES",
    "Naming",
    "TensorFolder",
    "Translation",
    "convert_",
    "fingerprint",
    "from_hugging_face",
    "load_weights",
    "read_config",
    "save_model",
    "to_hugging_face",
    "write_config",
    "write_tensors",
]
