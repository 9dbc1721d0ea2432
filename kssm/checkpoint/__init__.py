"""Checkpoints on disk: a folder with ``config.json`` and ``model.safetensors``."""

from kssm.checkpoint.files import load_weights, read_config, save_checkpoint

__all__ = ["load_weights", "read_config", "save_checkpoint"]
