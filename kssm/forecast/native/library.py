"""Finds, or makes, the compiled code for this processor and calls it through ctypes."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kssm.forecast.native import build

_log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "lib"
SWITCH = "KSSM_NATIVE"
"""Environment variable: ``0`` keeps to plain torch."""


class Sizes(ctypes.Structure):
    """Mirrors ``Sizes`` in model.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("features", "d_model", "layers", "d_inner")),
        *((name, ctypes.c_int64) for name in ("d_mlp", "rank", "groups", "conv_width")),
        *((name, ctypes.c_int64) for name in ("head_hidden", "head_horizon", "format")),
        ("eps", ctypes.c_double),
        ("kept", ctypes.c_int64),
    )


class ArenaPointers(ctypes.Structure):
    """Mirrors ``Arena`` in tile.h."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scaler", "forecast")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("windows", "states")),
    )


class RowPointers(ctypes.Structure):
    """Mirrors ``Rows`` in copies.h."""

    _fields_ = (
        ("copies", ctypes.c_int64),
        ("parts", ctypes.POINTER(ArenaPointers)),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("factors", "mature")),
        *((name, ctypes.c_void_p) for name in ("clock", "block", "rivals")),
        *((name, ctypes.c_void_p) for name in ("rivals_scale", "contest")),
    )


pack_samples = struct.Struct("q6P").pack
"""``Samples`` of step.h from its fields, 0 = NULL: a third of the time of a ``Structure``."""


class Series(ctypes.Structure):
    """Mirrors ``Series`` in prefill.h."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("values", "dt", "lengths", "tail")),
        ("every", ctypes.c_int64),
        ("forecasts", ctypes.c_void_p),
    )


class Source(ctypes.Structure):
    """Mirrors ``Source`` in forecast.h."""

    _fields_ = (
        ("points", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("forecasts", "scaler")),
    )


class Level(ctypes.Structure):
    """Mirrors ``Level`` in quantiles.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("low", "high")),
        ("weight", ctypes.c_double),
    )


class Question(ctypes.Structure):
    """Mirrors ``Question`` in forecast.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "horizon", "levels", "direct", "copies")),
        ("sources", ctypes.POINTER(Source)),
        ("factors", ctypes.POINTER(ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("slots", "clock", "contest")),
        ("wanted", ctypes.POINTER(Level)),
        ("quantiles", ctypes.c_void_p),
    )


class Watched(ctypes.Structure):
    """Mirrors ``Watched`` in monitor.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "tokens")),
        *((name, ctypes.c_void_p) for name in ("slots", "values", "tail", "monitors")),
        *((name, ctypes.c_void_p) for name in ("probability", "surprise")),
    )


class Library:
    """The compiled functions; calls release Python's global lock."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        pointer, count, to = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER
        self._pack = loaded.kssm_pack
        self._pack.argtypes = (to(Sizes), pointer, pointer)
        self._pack.restype = count
        common = (to(Sizes), pointer, to(RowPointers))
        self.step: Callable[[Sizes, int, RowPointers, bytes], int] = loaded.kssm_step
        """Advances the rows of samples (``pack_samples``) by one sample each; not 0: ``check``."""
        loaded.kssm_step.argtypes = (*common, ctypes.c_char_p)
        self._prefill = loaded.kssm_prefill
        self._prefill.argtypes = (*common, count, count, to(Series))
        self._forecast = loaded.kssm_forecast
        self._forecast.argtypes = (to(Question), count, count)
        self._watch = loaded.kssm_watch
        self._watch.argtypes = (to(Watched),)
        self._watch.restype = None

    def packed_size(self, sizes: Sizes) -> int:
        """Bytes that the packed weights take."""
        return self._pack(sizes, None, None)

    def pack(self, sizes: Sizes, sources: Sequence[int], packed: int) -> None:
        """Copy the weights at the addresses ``sources`` into the buffer of zeros at ``packed``."""
        self._pack(sizes, (ctypes.c_void_p * len(sources))(*sources), packed)

    def prefill(
        self, sizes: Sizes, packed: int, arena: RowPointers, rows: range, series: Series
    ) -> None:
        """Advance the arena's ``rows`` by all their samples."""
        check(self._prefill(sizes, packed, arena, rows.start, rows.stop, series))

    def forecast(self, question: Question, rows: range) -> None:
        """Answer the question for ``rows``."""
        check(self._forecast(question, rows.start, rows.stop))

    def watch(self, watched: Watched) -> None:
        """Bring anomaly monitors forward."""
        self._watch(watched)


def check(code: int) -> None:
    """Raise what a code other than 0 means."""
    if code == 1:
        raise IndexError("a slot is outside the arena")
    if code:
        raise MemoryError("no memory for the activations")


@functools.cache
def load() -> Library | None:
    """The library for this processor, compiled now if need be; None = use plain torch."""
    if os.environ.get(SWITCH) == "0":
        return None
    for variant in usable_variants():
        try:
            return Library(_locate(variant))
        except (OSError, RuntimeError, build.BuildError) as error:
            _log.info("the compiled CPU code for %s is not used: %s", variant, error)
    return None


def usable_variants() -> list[str]:
    """The variants that this processor can run, best first."""
    if "neon" in build.variants():
        return ["neon"]
    widest = torch.backends.cpu.get_cpu_capability().lower()
    flags = _processor_flags()
    candidates = {
        "avx512vnni": widest == "avx512" and "avx512_vnni" in flags,
        "avx512": widest == "avx512",
        "avxvnni": widest in {"avx512", "avx2"} and "avx_vnni" in flags,
        "avx2": widest in {"avx512", "avx2"},
    }
    return [name for name, usable in candidates.items() if usable and name in build.variants()]


def _processor_flags() -> frozenset[str]:
    """What Linux says that the processor has; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _locate(variant: str) -> Path:
    name = build.library_name(variant)
    if (SHIPPED / name).is_file():
        return SHIPPED / name
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    path = folder / name
    return path if path.is_file() else build.compile_variant(variant, folder)


def cache_folder() -> Path:
    """Where compiled libraries are kept when the package came without them."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kssm" / "native"


def _check_private(folder: Path) -> None:
    """Code is only loaded from where nobody else could have put it."""
    info = folder.stat()
    if info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be written by others")
