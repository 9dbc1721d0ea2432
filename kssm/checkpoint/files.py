"""Reading and writing checkpoint folders; every problem of a file is named in one error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kssm.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_MAX_NAMED = 20


def save_checkpoint(
    folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, half: bool
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: created when missing; files in it are replaced.
        config: JSON-ready description of the model.
        weights: tensors by name.
        half: store matrices as fp16 (vectors stay as they are: biases of the recurrence near its
            stability limit need their precision, and weigh nothing).
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: _for_disk(tensor, half) for name, tensor in weights.items()}
    weights_file, config_file = path / WEIGHTS_FILE, path / CONFIG_FILE
    save_file(tensors, weights_file)
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # safetensors makes files that only their owner can read; a model is to be served by others.
    weights_file.chmod(config_file.stat().st_mode)


def _for_disk(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.dim() >= 2 else tensor


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


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load a folder's weights into ``model``, converting floating dtypes to the model's.

    Tensors are read lazily, one at a time. Raises ``CheckpointError`` that names every missing,
    unexpected, misshapen and non-finite tensor; the model is untouched then.
    """
    path = Path(folder) / WEIGHTS_FILE
    target = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            problems = [f"missing {name}" for name in sorted(target.keys() - names)]
            problems += [f"unexpected {name}" for name in sorted(names - target.keys())]
            loaded: dict[str, Tensor] = {}
            for name in sorted(names & target.keys()):
                tensor = file.get_tensor(name)
                problems += _problems(name, tensor, target[name])
                loaded[name] = tensor.to(target[name].dtype)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if problems:
        shown = "; ".join(problems[:_MAX_NAMED])
        rest = len(problems) - _MAX_NAMED
        raise CheckpointError(f"{path}: {shown}" + (f"; and {rest} more" if rest > 0 else ""))
    model.load_state_dict(loaded)


def _problems(name: str, tensor: Tensor, target: Tensor) -> list[str]:
    if tensor.shape != target.shape:
        return [f"{name} has shape {list(tensor.shape)}, expected {list(target.shape)}"]
    if not tensor.is_floating_point():
        return [f"{name} has dtype {tensor.dtype}, expected floating point"]
    if not bool(torch.isfinite(tensor).all()):
        return [f"{name} holds non-finite values"]
    return []
