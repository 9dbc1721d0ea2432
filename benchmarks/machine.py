"""What one core of this machine can do at most: multiply-adds, and bytes read."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from kssm.forecast.native import build, library

TURNS = 4_000_000
"""Of the loop in machine.c: some tens of milliseconds."""


class Machine:
    """The loops of machine.c, compiled for this processor."""

    def __init__(self) -> None:
        variants, command = library.usable_variants(), build.compiler()
        if not variants or command is None:
            raise SystemExit("the machine's limits need a C compiler")
        flags = [*build.FLAGS, *build.variants()[variants[0]]]
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "machine.so"
            source = Path(__file__).with_name("machine.c")
            subprocess.run([*command, *flags, str(source), "-o", str(target)], check=True)
            loaded = ctypes.CDLL(str(target))
        self._compute, self._read = loaded.peak, loaded.read_all
        self._compute.argtypes = (ctypes.c_long,)
        self._read.argtypes = (ctypes.c_void_p, ctypes.c_long)
        self._numbers = 0

    def compute(self) -> None:
        """As many multiply-adds as one core can, from registers alone."""
        self._numbers = TURNS * self._compute(TURNS)

    def gflops(self, microseconds: float) -> float:
        """The rate of ``compute``, which took so long; a multiply-add counts as two."""
        return 2e-3 * self._numbers / microseconds

    def read(self, memory: Tensor) -> None:
        """Every byte of ``memory``, once and in order."""
        self._read(memory.data_ptr(), memory.nbytes)
