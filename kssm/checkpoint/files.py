"""Checkpoint folders: ``config.json`` and the weights; models written as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from kssm.checkpoint.folder import write_tensors
from kssm.checkpoint.precision import check_dtype, matrix_names
from kssm.errors import CheckpointError

CONFIG_FILE: Final = "config.json"


def save_model(
    folder: str | Path,
    config: Mapping[str, Any],
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint folder under the model's own names.

    Args:
        folder: created when missing; files in it are replaced.
        config: JSON-ready description of the model.
        model: whose weights to write.
        dtype: of the matrices (f16, bf16, f32 or f64; others stay as they are, see
            ``precision``), None = the model's own.
        max_shard_bytes: write shards of about this size, None = one file.
    """
    tensors = dict(model.state_dict())
    if dtype is not None:
        check_dtype(dtype)
        for name in matrix_names(model):
            tensors[name] = tensors[name].to(dtype)
    write_config(folder, config)
    write_tensors(folder, tensors, max_shard_bytes)


def write_config(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, creating the folder when missing."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint folder; raises ``invalid_checkpoint``."""
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return config


def fingerprint(description: str, model: nn.Module) -> str:
    """Hex digest of a model's description and every bit of its weights."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
