"""Tensors of a checkpoint folder, in one file or in shards; read lazily, written in pieces.

Only safetensors are read: pickled weights can run code, and are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kssm.errors import CheckpointError

WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_OWN_FILES: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFolder:
    """The tensors of a folder, memory-mapped: nothing is read until ``get``; a context manager.

    Raises ``CheckpointError`` when files are missing, damaged or contradict the index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self._files = ExitStack()
        self._handles: dict[str, Any] = {}
        try:
            self._open()
        except (OSError, SafetensorError) as error:
            self._files.close()
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()

    def __contains__(self, name: object) -> bool:
        return name in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the file's header."""
        return tuple(self._handles[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype, from the file's header; None if it is one we do not know."""
        return _DTYPES.get(self._handles[name].get_slice(name).get_dtype())

    def get(self, name: str) -> Tensor:
        """The tensor itself."""
        try:
            return self._handles[name].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"cannot read {name} of {self.path}: {error}") from error

    def _open(self) -> None:
        if (self.path / WEIGHTS_FILE).is_file():
            self._handles = dict.fromkeys(*self._listed(WEIGHTS_FILE))
        elif (self.path / INDEX_FILE).is_file():
            self._open_shards(_weight_map(self.path / INDEX_FILE))
        else:
            raise CheckpointError(self._absent())

    def _open_shards(self, weight_map: Mapping[str, str]) -> None:
        problems: list[str] = []
        for shard in sorted(set(weight_map.values())):
            names, handle = self._listed(shard)
            expected = {name for name, place in weight_map.items() if place == shard}
            problems += [f"{shard} lacks {name}" for name in sorted(expected - set(names))]
            problems += [f"{shard} holds unlisted {n}" for n in sorted(set(names) - expected)]
            self._handles |= dict.fromkeys(names, handle)
        if problems:
            raise CheckpointError(f"{self.path}: {listing(problems)}")

    def _listed(self, file: str) -> tuple[list[str], Any]:
        handle = self._files.enter_context(safe_open(self.path / file, framework="pt"))
        return sorted(handle.keys()), handle

    def _absent(self) -> str:
        pickled = sorted(path.name for path in self.path.glob("pytorch_model*.bin"))
        if pickled:
            return (
                f"{self.path} holds pickled weights ({pickled[0]}), which can run code and are "
                "never loaded: save it again as safetensors"
            )
        return f"{self.path} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}"


def write_tensors(
    folder: str | Path, tensors: Mapping[str, Tensor], max_shard_bytes: int | None = None
) -> None:
    """Write ``tensors`` to a folder, as one file or as shards with an index.

    Args:
        folder: created when missing; weight files of an earlier save are replaced.
        tensors: by name; copied to the host one shard at a time.
        max_shard_bytes: size from which a new shard begins (a larger tensor has one of its own);
            None = one file.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    shards = plan_shards({n: t.nbytes for n, t in tensors.items()}, max_shard_bytes)
    count = len(shards)
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, names in zip([WEIGHTS_FILE] if count == 1 else files, shards, strict=True):
        held = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(held, path / file, metadata={"format": "pt"})
        (path / file).chmod(0o666 & ~_umask(path))
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    _finish(path, weight_map if count > 1 else {}, sum(t.nbytes for t in tensors.values()))


def plan_shards(sizes: Mapping[str, int], max_bytes: int | None) -> list[list[str]]:
    """Names in their order, cut where a shard would grow past ``max_bytes``."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if max_bytes is not None and shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def listing(problems: list[str], most: int = 20) -> str:
    """Problems in one line; of very many only the first."""
    shown = "; ".join(problems[:most])
    return shown + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def _finish(path: Path, weight_map: Mapping[str, str], size: int) -> None:
    """Write the index if there is one, and remove what an earlier save left behind."""
    index = path / INDEX_FILE
    if weight_map:
        body = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        index.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    else:
        index.unlink(missing_ok=True)
    current = set(weight_map.values()) or {WEIGHTS_FILE}
    for file in path.glob("model*.safetensors"):
        if _OWN_FILES.fullmatch(file.name) and file.name not in current:
            file.unlink()


def _umask(folder: Path) -> int:
    """What the process's umask takes away (safetensors makes files only their owner can read)."""
    probe = folder / ".umask"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return 0o666 & ~mode


def _weight_map(path: Path) -> dict[str, str]:
    """The index's table of tensors and files; files must lie in the folder itself."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {error!r}") from error
    outside = sorted(file for file in set(pairs.values()) if Path(file).name != file)
    if outside:
        raise CheckpointError(f"{path} names files outside its folder: {outside}")
    if not pairs:
        raise CheckpointError(f"{path} lists no tensors")
    return pairs
