"""What the recurrences of a model remember: time constants and frequencies of their modes.

Each mode multiplies its state by an eigenvalue a token. Where that depends on the token, it is
taken for a token of zeros and a step of one interval: the memory that the parameters alone make.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.models.kssm import KSSMBlock
from kssm.models.kssm_matrix import KSSMMatrixBlock
from kssm.models.mamba import MambaBlock
from kssm.models.mamba2 import Mamba2Block
from kssm.models.rwkv4 import RWKV4Block
from kssm.models.rwkv6 import RWKV6Block
from kssm.models.s4d import S4DBlock
from kssm.models.stack import Stack
from kssm.models.transformer import TransformerBlock
from kssm.ops.matrix_scan.gates import MatrixParameters, compute_gates


class Spectrum(NamedTuple):
    """Modes of one layer.

    Attributes:
        kind: the layer's model.
        log_radius: [n] logarithm of each eigenvalue's modulus, fp64; 0 = nothing is forgotten.
        angle: [n] turns a token, 0 ... 1/2, fp64.
        window: tokens that an attention layer sees (it has no modes), else None.
    """

    kind: str
    log_radius: Tensor
    angle: Tensor
    window: int | None = None

    @property
    def time_constants(self) -> Tensor:
        """[n] tokens after which a mode has fallen to 1/e; infinite where it never does."""
        return 1.0 / self.log_radius.clamp_max(0.0).abs()

    @property
    def radius(self) -> float:
        """The largest modulus of an eigenvalue; above 1 the layer is unstable."""
        return float(self.log_radius.max().exp()) if len(self.log_radius) else 0.0


@torch.no_grad()
def spectra(stack: Stack) -> list[Spectrum]:
    """The spectrum of each layer."""
    return [_spectrum(block) for block in stack.blocks]


def _spectrum(block: torch.nn.Module) -> Spectrum:
    kind = type(block).__name__.removesuffix("Block").lower()
    flat = _logarithm(block).flatten().cpu()
    window = block.config.window if isinstance(block, TransformerBlock) else None
    if not flat.is_complex():
        return Spectrum(kind, flat, torch.zeros_like(flat), window)
    return Spectrum(kind, flat.real, flat.imag.abs() / (2 * math.pi))


def _logarithm(block: torch.nn.Module) -> Tensor:
    """Logarithms of a layer's eigenvalues, real or complex, in any shape; none of attention's."""
    match block:
        case KSSMBlock():
            return _cayley(block)
        case KSSMMatrixBlock():
            return _split_cayley(block)
        case MambaBlock() | Mamba2Block():
            return _zero_order_hold(block)
        case RWKV4Block() | RWKV6Block():
            decay = block.decay if isinstance(block, RWKV4Block) else block.time.decay
            return -decay.double().exp()
        case S4DBlock():
            return block.transition(None)[0].to(torch.complex128).log()
        case _:
            return torch.empty(0, dtype=torch.float64)


def _cayley(block: KSSMBlock) -> Tensor:
    """Logarithm of (1 - z) / (1 + z) with z = dt / 2 (alpha + i omega)."""
    p = block.scan_parameters()
    alpha = F.softplus(p.alpha_bias.double())
    omega = p.omega_scale.double() * p.omega_bias.double()
    z = 0.5 * F.softplus(p.dt_bias.double()) * torch.complex(alpha, omega)
    # |1 - z|^2 = |1 + z|^2 - 4 Re z: exact for modes within 1e-16 of the unit circle too.
    decay = 0.5 * torch.log1p(-4 * z.real / (1 + z).abs().square())
    return torch.complex(decay, ((1 - z) / (1 + z)).angle())


def _split_cayley(block: KSSMMatrixBlock) -> Tensor:
    """Logarithm of each head's decay times each of its group's rotations, [heads, pairs]."""
    p = MatrixParameters(*(parameter.double() for parameter in block.scan_parameters()))
    heads, still = torch.zeros_like(p.dt_bias), torch.zeros_like(p.rate)
    gates = compute_gates(heads, heads, still, None, p)
    angle = -2 * gates.half_angle.repeat_interleave(len(heads) // len(still), dim=0)
    return torch.complex(gates.log_decay.unsqueeze(-1).expand_as(angle), angle)


def _zero_order_hold(block: MambaBlock | Mamba2Block) -> Tensor:
    """Logarithm of exp(step A), A negative and real."""
    step = F.softplus(block.dt_bias.double())
    a = -block.a_log.double().exp()
    return a * (step.unsqueeze(-1) if a.dim() == 2 else step)
