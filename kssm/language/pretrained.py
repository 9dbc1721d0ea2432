"""Language models on disk: our folders and those of Hugging Face's ``transformers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from kssm.checkpoint import (
    Translation,
    convert_,
    from_hugging_face,
    load_weights,
    read_config,
    save_model,
    to_hugging_face,
    write_config,
    write_tensors,
)
from kssm.checkpoint.loading import Naming
from kssm.checkpoint.names import rename
from kssm.checkpoint.precision import check_dtype
from kssm.errors import CheckpointError, InvalidInputError
from kssm.language.config import LanguageConfig
from kssm.language.model import KSSMLMHeadModel, LanguageModel
from kssm.models.kssm import KSSMConfig

ARCHITECTURE: Final = "kssm-language-model"


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    check_values: bool = True,
) -> LanguageModel:
    """A language model in evaluation mode, from our own folder or one of ``transformers``.

    Args:
        folder: holds config.json and safetensors, in one file or in shards.
        device: where the model is to live.
        dtype: of the matrices (see ``kssm.checkpoint.precision``).
        window: tokens that attention sees and a session keeps, where the model's are more.
        check_values: refuse weights that are not finite, or not in ``dtype``'s range.

    Raises:
        CheckpointError: ``invalid_checkpoint`` names everything wrong with the weights,
            ``unsupported_checkpoint`` every setting of ``config.json`` we cannot honour.
    """
    config, naming = describe(read_config(folder), Path(folder), window)
    kind = KSSMLMHeadModel if isinstance(config.backbone, KSSMConfig) else LanguageModel
    with torch.device("meta"):  # no memory and no random numbers for what a file will fill
        model = kind(config)
    convert_(model, dtype)
    model.to_empty(device="cpu")
    load_weights(model, folder, naming, check_values=check_values)
    return model.eval().requires_grad_(False).to(device)


def save(
    model: LanguageModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write our own format; arguments as in ``kssm.checkpoint.save_model``."""
    config = {"architecture": ARCHITECTURE, "format": 1, **model.config.to_mapping()}
    save_model(folder, config, model, dtype=dtype, max_shard_bytes=max_shard_bytes)


def save_hugging_face(
    model: LanguageModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write what ``transformers`` reads.

    ``dtype`` is that of all tensors, as theirs is; None = each as it is in the model. Raises
    ``unsupported_checkpoint`` for models that ``transformers`` does not have.
    """
    c = model.config
    translation = Translation(c.backbone, c.vocab_size, c.tied, c.bos_token, c.eos_tokens)
    config = to_hugging_face(translation)
    tensors = rename(model.state_dict(), translation.naming().weights)
    if dtype is not None:
        check_dtype(dtype)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_config(folder, config)
    write_tensors(folder, tensors, max_shard_bytes)


def is_language_model(config: Mapping[str, Any]) -> bool:
    """Whether a folder's ``config.json`` describes a language model, ours or theirs."""
    return config.get("architecture") == ARCHITECTURE or "model_type" in config


def describe(
    config: Mapping[str, Any], folder: Path, window: int | None = None
) -> tuple[LanguageConfig, Naming | None]:
    """The model that ``config`` describes, and the names of its weights if not our own."""
    if "model_type" in config:
        found = from_hugging_face({**config, **_ends(folder)}, window)
        fields = (found.backbone, found.vocab_size, found.tied, found.bos_token, found.eos_tokens)
        return LanguageConfig(*fields), found.naming()
    fields = dict(config)
    if fields.pop("architecture", None) != ARCHITECTURE or fields.pop("format", None) != 1:
        raise CheckpointError(f"{folder} is not a format 1 {ARCHITECTURE}")
    try:
        return LanguageConfig.from_mapping(fields), None
    except InvalidInputError as error:
        raise CheckpointError(f"{folder}: malformed configuration: {error}") from error


def _ends(folder: Path) -> dict[str, Any]:
    """``eos_token_id`` of ``generation_config.json``, which may name more than ``config.json``."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return {} if ends is None else {"eos_token_id": ends}
