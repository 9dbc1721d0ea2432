"""Compiles ``native.c`` with whatever C compiler there is; needs nothing but the standard library.

Used when a wheel is built (``hatch_build.py``) and, where no compiled copy came with the package
(a source checkout), on first use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    *("native.c", "block.h", "copies.h", "forecast.h", "integer.h", "lanes.h", "linear.h"),
    *("maths.h", "matrix.h", "model.h", "monitor.h", "prefill.h", "quantiles.h", "signal.h"),
    *("step.h", "tile.h"),
)
# No -ffast-math: the code tells NaN and infinity from numbers.
FLAGS = (
    *("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *(*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
    "-mprefer-vector-width=512",
)
_X86: dict[str, tuple[str, ...]] = {
    "avx2": _AVX2,
    "avxvnni": (*_AVX2, "-mavxvnni"),
    "avx512": _AVX512,
    "avx512vnni": (*_AVX512, "-mavx512vnni"),
}
_ARM: dict[str, tuple[str, ...]] = {"neon": ()}
TIMEOUT_S = 120.0


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which."""


def variants() -> dict[str, tuple[str, ...]]:
    """Instruction sets worth compiling for on this kind of machine -> compiler flags."""
    machine = platform.machine().lower()
    if machine in {"x86_64", "amd64"}:
        return _X86
    return _ARM if machine in {"aarch64", "arm64"} else {}


def library_name(variant: str) -> str:
    """File name of a compiled variant: it changes with the sources, so an old one is not used."""
    digest = hashlib.sha256(repr((FLAGS, variants()[variant])).encode())
    for source in SOURCES:
        digest.update((HERE / source).read_bytes())
    return f"kssm-{variant}-{digest.hexdigest()[:12]}.so"


def compiler() -> Sequence[str] | None:
    """Command of a C compiler: ``$CC``, the system's, or the one in the package ``ziglang``."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def compile_variant(variant: str, folder: Path) -> Path:
    """Compile ``variant`` into ``folder``; raises ``BuildError``.

    The file appears whole or not at all, so several processes may do this at once.
    """
    command = compiler()
    if command is None:
        raise BuildError("there is no C compiler")
    target = folder / library_name(variant)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / target.name
        flags = [*FLAGS, *variants()[variant]]
        _run([*command, *flags, str(HERE / "native.c"), "-o", str(output), "-lm"])
        output.replace(target)
    return target


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (the compiler the user or the system chose)
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
