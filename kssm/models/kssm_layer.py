"""The KSSM recurrence as one plain layer, to put into networks of one's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError
from kssm.models.kssm import nuclear_init
from kssm.models.layers import init_linear
from kssm.models.stack import compute_dtype, state_dtype
from kssm.ops.kssm_scan import ScanParameters, kssm_scan, kssm_step_


class KSSMLayer(nn.Module):
    """Mixes tokens over time: a selective rotation scan between two projections.

    No residual, norm, convolution or feed-forward layer: what ``KSSMBlock`` has around the
    recurrence is left to the network that the layer is part of. The state of a row is one tensor
    [d_inner, 2], fp32 or else fp64.
    """

    def __init__(
        self, d_model: int, *, d_inner: int | None = None, rank: int = 16, groups: int = 1
    ) -> None:
        """Make a layer.

        Args:
            d_model: width of the tokens.
            d_inner: channels of the recurrence, None = ``d_model``.
            rank: rank of the maps from a token to each of damping, frequency and step.
            groups: groups of channels that share an input coefficient; divides ``d_inner``.

        Raises:
            InvalidInputError: ``invalid_config``.
        """
        super().__init__()
        inner = d_model if d_inner is None else d_inner
        if min(d_model, inner, rank, groups) < 1 or inner % groups:
            raise InvalidInputError(
                "sizes must be positive, and groups divide d_inner", code="invalid_config"
            )
        self.d_model, self.d_inner = d_model, inner
        self._parts = (rank, rank, rank, groups, groups)
        self.in_proj = init_linear(d_model, inner)
        self.select = init_linear(inner, 3 * rank + 2 * groups)
        self.alpha_up = init_linear(rank, inner, std=0.01)
        self.omega_up = init_linear(rank, inner, std=0.003)
        self.dt_up = init_linear(rank, inner, std=0.03)
        self.alpha_bias = nn.Parameter(torch.empty(inner))
        self.omega_bias = nn.Parameter(torch.empty(inner))
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.c_re = nn.Parameter(torch.empty(inner))
        self.c_im = nn.Parameter(torch.empty(inner))
        self.omega_scale: Tensor
        self.register_buffer("omega_scale", torch.empty(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = init_linear(inner, d_model)
        with torch.no_grad():
            self.select.weight[3 * rank :] *= 0.1
        nuclear_init(self)

    def initial_state(self, rows: int) -> Tensor:
        """State of ``rows`` rows that have seen nothing."""
        dtype = state_dtype(self.dt_bias.dtype)
        return torch.zeros(rows, self.d_inner, 2, dtype=dtype, device=self.dt_bias.device)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Advance rows over many tokens in parallel; differentiable.

        Args:
            x: [B, T, d_model].
            state: [B, d_inner, 2] to continue from, never modified; None = fresh.
            lengths: [B] number of valid tokens, None = T; the others leave the state untouched.
            dt: [B, T] factors >= 0 on the step of each token, None = 1.

        Returns:
            [B, T, d_model] and the state after each row's last valid token.
        """
        inputs, alpha, omega, step, b_re, b_im = self._selection(x)
        y, new_state = kssm_scan(
            alpha,
            omega,
            step,
            inputs,
            b_re,
            b_im,
            self._scan_parameters(),
            token_dt=dt,
            initial_state=state,
            lengths=lengths,
        )
        return self._read(y, inputs, x), new_state

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token a row, x [B, d_model]: outputs of the same shape and the new state."""
        inputs, alpha, omega, step, b_re, b_im = self._selection(x)
        new_state, rows = state.clone(), torch.arange(len(x), device=x.device)
        y = kssm_step_(
            alpha,
            omega,
            step,
            inputs,
            b_re,
            b_im,
            self._scan_parameters(),
            new_state,
            rows,
            token_dt=dt,
        )
        return self._read(y, inputs, x), new_state

    def _selection(self, x: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the scan [..., d_inner]; alpha, omega, dt and complex B of each token."""
        inputs = self.in_proj(x)
        alpha, omega, dt, b_re, b_im = self.select(inputs).split(self._parts, dim=-1)
        low = (self.alpha_up(alpha), self.omega_up(omega), self.dt_up(dt))
        return inputs, *low, b_re + 1.0, b_im

    def _scan_parameters(self) -> ScanParameters:
        wide = state_dtype(self.dt_bias.dtype)
        alpha, omega = self.alpha_bias, self.omega_bias
        own = (alpha, omega, self.omega_scale, self.dt_bias, self.c_re, self.c_im)
        return ScanParameters(*(parameter.to(wide) for parameter in own))

    def _read(self, y: Tensor, inputs: Tensor, x: Tensor) -> Tensor:
        return self.out_proj((y + self.skip * inputs).to(compute_dtype(x)))
