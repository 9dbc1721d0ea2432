"""Keeping an operation out of torch.compile's graphs without paying for Dynamo's import."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graph(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, run eagerly when called under torch.compile (the graph breaks around it).

    ``torch.compiler.disable`` imports Dynamo, which takes over a second; that import has already
    happened whenever something is being compiled, so it is asked for only then.
    """
    if torch.compiler.is_compiling():
        return cast("Callable[P, R]", torch.compiler.disable(function))
    return function
