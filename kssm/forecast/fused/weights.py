"""The forecaster's weights in the order and shapes that the fused kernels read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from kssm.forecast import scaler
from kssm.forecast.distribution import LEVELS
from kssm.models.kssm import KSSMBlock, KSSMConfig
from kssm.models.layers import RMSNorm

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster

_LINEAR_LAYERS = 8
"""Of a block with a feed-forward layer; embedding and head have three more."""

LEAST = 16
"""Smallest side of a tensor-core product."""


@dataclass(frozen=True)
class Sizes:
    """Shapes that the kernels are compiled for, padded to powers of two where they need those.

    ``width`` is the model's own d_model. Norms divide by ``d_model``: their weights and ``eps``
    make up for it.
    """

    layers: int
    width: int
    d_model: int
    d_inner: int
    d_mlp: int
    group: int
    taps: int
    rank: int
    low: int
    head_hidden: int
    horizon: int
    eps: float
    group_eps: float

    @classmethod
    def of(cls, model: SignalForecaster) -> Sizes | None:
        """The model's sizes; None where the kernels have no form for them."""
        backbone = model.config.backbone
        if not isinstance(backbone, KSSMConfig):
            return None
        groups = backbone.d_inner // backbone.group_size
        rank = _power_of_two(backbone.rank)
        d_model = _power_of_two(backbone.d_model)
        eps = model.backbone.norm.eps
        sizes = cls(
            layers=backbone.n_layers,
            width=backbone.d_model,
            d_model=d_model,
            d_inner=backbone.d_inner,
            d_mlp=backbone.d_mlp,
            group=backbone.group_size,
            taps=backbone.conv_width,
            rank=rank,
            low=_power_of_two(3 * rank + 2 * groups),
            head_hidden=_power_of_two(model.config.head_hidden),
            horizon=model.config.head_horizon,
            eps=eps * backbone.d_model / d_model,
            group_eps=eps,
        )
        return sizes if sizes.fit() else None

    @property
    def rest(self) -> int:
        """Columns of B's two parts."""
        return _power_of_two(2 * self.d_inner // self.group)

    @property
    def selection(self) -> int:
        """Columns of alpha, omega, dt and B."""
        return 3 * self.d_inner + self.rest

    def fit(self) -> bool:
        """Whether tiles have sides that are powers of two, none too large to keep at hand."""
        wide = _power_of_two(self.group) == self.group
        divided = self.horizon % LEAST == 0 and self.d_mlp > 0 and self.d_mlp % LEAST == 0
        return (
            wide
            and divided
            and self.head_hidden <= 1024
            and self.d_model <= 512
            and self.low <= 256
            and self.group <= 128
        )


@dataclass(frozen=True, eq=False)
class Weights:
    """A copy of the weights: matrices in ``kind``, vectors in fp32; L layers one after another.

    Attributes:
        embed, embed_bias: [16, DM] (the features' rows, then zeros), [DM].
        norms: [L, 2, DM] before the recurrence and before the feed-forward layer.
        final_norm: [DM].
        channels: [L, TAPS + 9, DI] as listed in ``kernel_block``.
        w_in, w_select, w_up, w_out, w_mlp_in, w_mlp_out: [L, outputs, inputs].
        w_hidden, w_head, head_bias: [HIDDEN, DM], [HORIZON, 16, HIDDEN] (ten outputs, then zeros),
            [HORIZON, 16].
        normed_in, normed_mlp_in, normed_hidden: the matrices that follow a norm, times its weight.
    """

    sizes: Sizes
    kind: torch.dtype
    embed: Tensor
    embed_bias: Tensor
    norms: Tensor
    final_norm: Tensor
    channels: Tensor
    w_in: Tensor
    w_select: Tensor
    w_up: Tensor
    w_out: Tensor
    w_mlp_in: Tensor
    w_mlp_out: Tensor
    w_hidden: Tensor
    w_head: Tensor
    head_bias: Tensor
    normed_in: Tensor
    normed_mlp_in: Tensor
    normed_hidden: Tensor

    @classmethod
    @torch.no_grad()
    def pack(cls, model: SignalForecaster, sizes: Sizes, kind: torch.dtype) -> Weights:
        """Copy the model's weights."""
        blocks = [cast("KSSMBlock", block) for block in model.backbone.blocks]
        beside = sizes.d_model - sizes.width
        more_hidden = sizes.head_hidden - model.config.head_hidden

        def stack(matrices: Iterable[Tensor], rows: int = 0, columns: int = 0) -> Tensor:
            padded = [F.pad(matrix.to(kind), (0, columns, 0, rows)) for matrix in matrices]
            return torch.stack(padded).contiguous()

        mlps = [block.mlp for block in blocks if block.mlp is not None]
        head, outputs = model.head, len(LEVELS) + 1
        hidden = F.pad(head.hidden.weight.to(kind), (0, beside, 0, more_hidden))
        by_horizon = head.out.weight.unflatten(0, (sizes.horizon, outputs))
        by_horizon = F.pad(by_horizon.to(kind), (0, more_hidden, 0, LEAST - outputs))
        embed = F.pad(model.embed.weight.t(), (0, beside, 0, LEAST - scaler.FEATURES))
        bias = head.bias.unflatten(0, (sizes.horizon, outputs))
        norms = torch.stack([_norms(block, sizes) for block in blocks])
        final_norm = _norm(cast("RMSNorm", model.backbone.norm), sizes)
        w_in = stack((block.in_proj.weight for block in blocks), columns=beside)
        w_mlp_in = stack((mlp.up.weight for mlp in mlps), columns=beside)
        return cls(
            sizes=sizes,
            kind=kind,
            embed=_vector(embed),
            embed_bias=_vector(F.pad(model.embed.bias, (0, beside))),
            norms=norms,
            final_norm=final_norm,
            channels=torch.stack([_channels(block) for block in blocks]),
            w_in=w_in,
            w_select=stack(_selection(block, sizes) for block in blocks),
            w_up=stack(_ups(block, sizes.rank) for block in blocks),
            w_out=stack((block.out_proj.weight for block in blocks), rows=beside),
            w_mlp_in=w_mlp_in,
            w_mlp_out=stack((mlp.down.weight for mlp in mlps), rows=beside),
            w_hidden=hidden.contiguous(),
            w_head=by_horizon.contiguous(),
            head_bias=_vector(F.pad(bias, (0, LEAST - outputs))),
            normed_in=(w_in * norms[:, :1]).to(kind),
            normed_mlp_in=(w_mlp_in * norms[:, 1:]).to(kind),
            normed_hidden=(hidden * final_norm).to(kind),
        )


def versions_of(model: SignalForecaster) -> list[int]:
    """What changes when the weights do. Writes to inference tensors are not counted by torch."""
    tensors = list(model.parameters())
    counted = not any(tensor.is_inference() for tensor in tensors[:1])
    versions = [tensor._version for tensor in tensors] if counted else []  # pyright: ignore[reportPrivateUsage]
    return versions + [tensor.data_ptr() for tensor in tensors[:2]]


def kind_for(model: SignalForecaster) -> torch.dtype:
    """fp16 if it holds all matrices of products exactly, else fp32; the embedding is none."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    matrices = [layer.weight.detach() for layer in layers if layer is not model.embed]
    exact = all(bool((matrix.half().float() == matrix.float()).all()) for matrix in matrices)
    return torch.float16 if exact else torch.float32


def can_pack(model: SignalForecaster) -> bool:
    """Whether the weights are as the kernels read them: plain layers, fp32 or 16-bit, one GPU."""
    if not all(type(block) is KSSMBlock for block in model.backbone.blocks):
        return False
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    plain = all(type(layer) is nn.Linear and layer.weight.is_cuda for layer in layers)
    parameters = list(model.parameters())
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return (
        plain
        and len(layers) == _LINEAR_LAYERS * len(model.backbone.blocks) + 3
        and model.embed.in_features == scaler.FEATURES
        and all(parameter.dtype in kinds for parameter in parameters)
        and not any(parametrize.is_parametrized(layer) for layer in layers)
    )


def _norms(block: KSSMBlock, sizes: Sizes) -> Tensor:
    assert block.mlp_norm is not None
    return torch.stack([_norm(block.norm, sizes), _norm(block.mlp_norm, sizes)])


def _norm(norm: RMSNorm, sizes: Sizes) -> Tensor:
    """The norm's weight for a mean over ``d_model`` numbers of which ``width`` are not zero."""
    scale = (sizes.width / sizes.d_model) ** 0.5
    return _vector(F.pad(norm.weight.detach() * scale, (0, sizes.d_model - sizes.width)))


def _channels(block: KSSMBlock) -> Tensor:
    """[TAPS + 9, DI]: one line a parameter of the channels."""
    scan = block.scan_parameters()
    lines = (
        *block.conv.weight,
        block.conv.bias,
        scan.alpha_bias,
        scan.omega_bias * scan.omega_scale,
        scan.omega_scale,
        scan.dt_bias,
        scan.c_re,
        scan.c_im,
        block.skip,
        block.out_norm.weight,
    )
    return torch.stack([_vector(line) for line in lines])


def _selection(block: KSSMBlock, sizes: Sizes) -> Tensor:
    """[LOW, DI]: alpha, omega and dt from every RANK-th row on, then B's two parts."""
    weight, rank = block.select.weight, block.rank
    padded = weight.new_zeros(sizes.low, sizes.d_inner)
    for part in range(3):
        start = part * sizes.rank
        padded[start : start + rank] = weight[part * rank : (part + 1) * rank]
    rest = weight[3 * rank :]
    padded[3 * sizes.rank : 3 * sizes.rank + len(rest)] = rest
    return padded


def _ups(block: KSSMBlock, rank: int) -> Tensor:
    """[3, DI, RANK]: alpha, omega, dt."""
    layers = (block.alpha_up, block.omega_up, block.dt_up)
    padded = layers[0].weight.new_zeros(3, layers[0].out_features, rank)
    for part, layer in enumerate(layers):
        padded[part, :, : layer.in_features] = layer.weight
    return padded


def _vector(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and ``LEAST``."""
    return max(LEAST, 1 << (size - 1).bit_length())


def divisor(size: int, wanted: int) -> int:
    """The largest power of two up to ``wanted`` that divides ``size``."""
    return min(wanted, size & -size)
