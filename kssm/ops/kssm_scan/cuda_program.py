"""CUDA sources of this package, compiled for the GPU at hand by NVRTC, which comes with PyTorch.

Compiled programs are kept beside the tuning file ($XDG_CACHE_HOME/kssm, ~/.cache/kssm), so that a
process compiles only what none before it did.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kssm.errors import KSSMError

HERE = Path(__file__).parent

_DYNAMIC_SHARED_BYTES = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""

_log = logging.getLogger(__name__)


class CudaError(KSSMError):
    """The driver or the compiler refused; the message says why."""

    code = "cuda_failed"


class Program:
    """A compiled kernel that takes one structure."""

    def __init__(self, binary: bytes, name: str, shared_bytes: int) -> None:
        self._driver = _driver()
        self._shared_bytes = shared_bytes
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        load = self._driver.cuModuleLoadData
        self._check(load(ctypes.byref(self._module), binary))
        get = self._driver.cuModuleGetFunction
        self._check(get(ctypes.byref(self._function), self._module, name.encode()))
        allow = self._driver.cuFuncSetAttribute
        self._check(allow(self._function, _DYNAMIC_SHARED_BYTES, shared_bytes))

    def launch(self, programs: int, threads: int, arguments: ctypes.Structure) -> None:
        """Queue the kernel on the current stream of the current device."""
        given = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        grid, block = (programs, 1, 1), (threads, 1, 1)
        launch = self._driver.cuLaunchKernel
        shared = self._shared_bytes
        self._check(launch(self._function, *grid, *block, shared, stream, given, None))

    def _check(self, result: int) -> None:
        if result:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            raise CudaError(f"CUDA driver: {(text.value or b'?').decode()}")


def program(
    source: str, name: str, defines: Mapping[str, int], shared_bytes: int, device: torch.device
) -> Program:
    """The kernel ``name`` of a source file of this folder, compiled with ``defines``.

    Raises:
        CudaError: there is no NVRTC, or it or the driver refuses.
    """
    return _program(source, name, tuple(sorted(defines.items())), shared_bytes, device.index)


@functools.cache
def compiler() -> ctypes.CDLL | None:
    """NVRTC of the CUDA version that PyTorch was built for; None if there is none."""
    if torch.version.cuda is None:
        return None
    library = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    folders = [Path(path) / "nvidia" for path in sys.path if path]
    installed = [str(found) for folder in folders for found in folder.glob(f"*/lib/{library}")]
    for place in (library, *installed):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


@functools.cache
def _program(
    source: str, name: str, defines: tuple[tuple[str, int], ...], shared_bytes: int, index: int
) -> Program:
    with torch.cuda.device(index):
        major, minor = torch.cuda.get_device_capability(index)
        options = [f"--gpu-architecture=sm_{major}{minor}"]
        options += [f"-D{key}={value}" for key, value in defines]
        return Program(_binary(assemble(source), options), name, shared_bytes)


def assemble(source: str) -> str:
    """A source file with the files of this folder that it includes put in their places."""
    lines = (HERE / source).read_text().splitlines()
    included = [
        assemble(line.split('"')[1]) if line.startswith("#include") else line for line in lines
    ]
    return "\n".join(included) + "\n"


def _binary(text: str, options: list[str]) -> bytes:
    """The compiled text, from the cache if it is there."""
    key = hashlib.sha256("\n".join([text, *options, str(torch.version.cuda)]).encode())
    kept = _cache_folder() / f"{key.hexdigest()[:32]}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    binary = _compile(text, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}.tmp")
        written.write_bytes(binary)
        written.replace(kept)
    except OSError as error:
        _log.info("compiled CUDA code is not kept: %s", error)
    return binary


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kssm" / "cuda"


def _compile(text: str, options: list[str]) -> bytes:
    nvrtc = compiler()
    if nvrtc is None:
        raise CudaError("NVRTC is not installed")
    handle = ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _ask(nvrtc, "nvrtcCreateProgram", ctypes.byref(handle), text.encode(), None, 0, None, None)
    try:
        if nvrtc.nvrtcCompileProgram(handle, len(options), given):
            raise CudaError(
                f"NVRTC: {_fetch(nvrtc, handle, 'ProgramLog').decode(errors='replace')}"
            )
        return _fetch(nvrtc, handle, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(handle))


def _fetch(nvrtc: ctypes.CDLL, handle: ctypes.c_void_p, what: str) -> bytes:
    """What the compiler has of a kind: its size first, then the bytes."""
    size = ctypes.c_size_t()
    _ask(nvrtc, f"nvrtcGet{what}Size", handle, ctypes.byref(size))
    room = ctypes.create_string_buffer(size.value)
    _ask(nvrtc, f"nvrtcGet{what}", handle, room)
    return room.raw


def _ask(nvrtc: ctypes.CDLL, function: str, *arguments: Any) -> None:
    result = getattr(nvrtc, function)(*arguments)
    if result:
        raise CudaError(f"{function} failed with {result}")


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CudaError("there is no CUDA driver") from error
