"""A residual stack of blocks with a final norm: the frame all sequence models share.

A block knows its own state by short names ("window", "state", ...); the stack prefixes them with
``layers.{i}.``. Blocks of different kinds may follow one another as long as their width agrees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kssm.errors import InvalidInputError
from kssm.models.base import SequenceModel, State, StateSpec
from kssm.models.layers import RMSNorm


@dataclass(frozen=True)
class StackConfig:
    """Sizes that every stack has; each model's configuration extends it.

    Attributes:
        d_model: width of the residual stream.
        n_layers: number of blocks.
    """

    d_model: int = 256
    n_layers: int = 8

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Sizes by name. Of equal names all models have about equally many parameters: tiny 70k,
    small 560k, base 4.5M, large 27M."""

    @classmethod
    def preset(cls, name: str) -> Self:
        """The configuration called ``name``; raises ``unknown_preset``."""
        if name not in cls.presets:
            known = ", ".join(cls.presets)
            raise InvalidInputError(f"no preset {name!r}, only {known}", code="unknown_preset")
        return cls(**cls.presets[name])

    def require(self, condition: bool, message: str) -> None:
        """Raise ``invalid_config`` unless ``condition``; for ``__post_init__``."""
        if not condition:
            raise InvalidInputError(message, code="invalid_config")


class Block(nn.Module, ABC):
    """One layer of a stack: tokens of the residual stream in and out, and a state of its own.

    Attributes:
        recurrent: the layer's own tensors that stay in fp32 (fp64) when the rest becomes 16-bit.
            They set time constants and frequencies, whose rounding errors grow with every token,
            and weigh next to nothing.
    """

    recurrent: ClassVar[frozenset[str]] = frozenset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Behind ``to``, ``half``, ``bfloat16``, ``cuda`` and the like."""
        own = [getattr(self, name) for name in self.recurrent]
        kept = {id(tensor) for each in own for tensor in (each, each.grad) if tensor is not None}

        def precise(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            shortened = id(tensor) in kept and new.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(new.device) if shortened else new

        return super()._apply(precise, recurse)

    @abstractmethod
    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of what one row carries; a fresh row holds zeros."""

    @abstractmethod
    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        """Advance all rows: x [B, T, d_model] -> the same shape, residual included, and the state.

        ``state`` (None = fresh) is not modified. Tokens at or after ``lengths`` are finite, leave
        the state untouched and may yield any finite output; ``dt`` [B, T] > 0 scales the steps.
        The new state has the dtypes of ``state_spec``.
        """

    @abstractmethod
    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        """One token a row [N, d_model]; the rows ``slots`` [N] of the arena change in place.

        Slot 0 is scratch space and may occur many times. A row whose new state is not finite
        keeps its old one.
        """


class Stack(SequenceModel):
    """Blocks one after another, then a norm; satisfies the sequence-model contract."""

    def __init__(
        self,
        d_model: int,
        blocks: Sequence[Block],
        norm: RMSNorm | nn.LayerNorm,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.gradient_checkpointing = gradient_checkpointing
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self._names = [
            {name: f"layers.{i}.{name}" for name in block.state_spec()}
            for i, block in enumerate(blocks)
        ]

    def state_spec(self) -> StateSpec:
        return {
            names[name]: entry
            for block, names in self._layers()
            for name, entry in block.state_spec().items()
        }

    def scan(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        if lengths is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            x = x.masked_fill((steps >= lengths.unsqueeze(1)).unsqueeze(-1), 0.0)
        new_state: State = {}
        for block, names in self._layers():
            old = None if state is None else {short: state[name] for short, name in names.items()}
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, own = checkpoint(block, x, old, lengths, dt, use_reentrant=False)
            else:
                x, own = block(x, old, lengths, dt)
            new_state |= {names[short]: entry for short, entry in own.items()}
        return self.norm(x), new_state

    def step_rows_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        for block, names in self._layers():
            own = {short: arena[name] for short, name in names.items()}
            x = block.step_(x, own, slots, dt)
        return self.norm(x)

    def _layers(self) -> list[tuple[Block, dict[str, str]]]:
        """The blocks, each with the full names of its state entries."""
        return list(zip(cast("list[Block]", list(self.blocks)), self._names, strict=True))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``x``: autocast's where it is on, else its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and recurrences under parameters of ``dtype``: fp64 or else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def remember_(entry: Tensor, slots: Tensor, new: Tensor) -> None:
    """Write the rows ``new`` [N, ...] to ``entry[slots]``, except those not entirely finite."""
    healthy = torch.isfinite(new).flatten(1).all(1).view(-1, *[1] * (new.dim() - 1))
    entry[slots] = torch.where(healthy, new.to(entry.dtype), entry[slots])
