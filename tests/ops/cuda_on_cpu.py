"""CUDA sources as programs for the CPU, for tests where there is no GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from kssm.ops.kssm_scan.cuda_program import assemble

SOURCE = Path(__file__).with_name("cuda_on_cpu.cpp")


class Emulator:
    """Stands for ``cuda_program.program``; compiles each set of defines once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[tuple[str, ...], ctypes.CDLL] = {}

    def program(
        self, source: str, name: str, defines: Mapping[str, int], shared: int, _: torch.device
    ) -> Emulated:
        key = (f"ENTRY={name}", *(f"{key}={value}" for key, value in sorted(defines.items())))
        if key not in self.built:
            self.built[key] = self._build(source, key)
        return Emulated(self.built[key], shared)

    def _build(self, source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        place = self.folder / str(len(self.built))
        place.mkdir()
        (place / "kernel.inc").write_text(assemble(source))
        target = place / "kernel.so"
        options = [f"-D{define}" for define in defines]
        options += ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{place}"]
        command = [compiler, *options, str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(target))


class Emulated:
    """Stands for ``cuda_program.Program``."""

    def __init__(self, library: ctypes.CDLL, shared_bytes: int) -> None:
        self.library, self.shared_bytes = library, shared_bytes

    def launch(self, programs: int, threads: int, arguments: ctypes.Structure) -> None:
        self.library.run(ctypes.byref(arguments), programs, threads, self.shared_bytes)
