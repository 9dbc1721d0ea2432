"""Adds the compiled CPU step to wheels; without a compiler the wheel is pure Python."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "kssm/forecast/native"


class NativeHook(BuildHookInterface[Any]):
    """Compiles one library for each instruction set worth having."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Where the system has no compiler, one comes from the package index for the build."""
        build = _load_build(self.root)
        needed = self.target_name == "wheel" and build.variants() and build.compiler() is None
        return ["ziglang>=0.13"] if needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and include. A source checkout (``editable``) compiles on first use instead."""
        build = _load_build(self.root)
        if self.target_name != "wheel" or version == "editable" or not build.variants():
            return
        folder = Path(self.directory) / "native"
        folder.mkdir(parents=True, exist_ok=True)
        libraries: list[Path] = []
        for variant in build.variants():
            try:
                libraries.append(build.compile_variant(variant, folder))
            except build.BuildError as error:  # a compiler may be too old for the newest
                self.app.display_warning(f"no compiled CPU step for {variant}: {error}")
        if not libraries:
            return
        for library in libraries:
            build_data["force_include"][str(library)] = f"{NATIVE}/lib/{library.name}"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


def _load_build(root: str) -> ModuleType:
    """The module by its path: the package itself needs torch, which a build has not."""
    spec = importlib.util.spec_from_file_location("kssm_build", Path(root) / NATIVE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
