"""The tree's own rules: who imports whom, which versions belong together."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kssm

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "kssm": ROOT / "kssm",
    "service": ROOT / "service",
    "kssm_client": ROOT / "clients" / "python" / "src" / "kssm_client",
}
FORBIDDEN = {
    "kssm": {"service", "kssm_client", "benchmarks", "examples", "fastapi", "uvicorn", "asyncio"},
    "service": {"kssm_client", "benchmarks", "examples"},
    "kssm_client": {"kssm", "service", "torch", "fastapi"},
}
ALLOWED = {("cli/serve.py", "service"), ("cli/bench.py", "benchmarks")}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    root = PACKAGES[package]
    found = {
        (path.relative_to(root).as_posix(), name)
        for path in root.rglob("*.py")
        for name in FORBIDDEN[package].intersection(imported(path))
    }
    assert found <= ALLOWED


def test_the_wheel_and_the_library_agree_on_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "kssm/__init__.py"
    client = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())
    assert client["project"]["version"] == kssm.__version__
