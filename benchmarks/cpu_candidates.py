"""Other ways to run a step on the CPU, for the comparison in docs/cpu.md.

Each does the backbone and the head for one row on a state of its own: without the scaler, the
score, arena slots and checks, so its time is a lower bound for a whole step done that way; only
onnxruntime does scaler and score too.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.forecast import SignalForecaster
from kssm.forecast.native.weights import kssm_sizes
from kssm.models.kssm import KSSMBlock

Step = Callable[[Tensor], object]


class LeanStep(nn.Module):
    """Torch with fused norms and whole-row arithmetic: two thirds of the usual operations."""

    def __init__(self, model: SignalForecaster) -> None:
        super().__init__()
        self.model = model
        config = kssm_sizes(model.config)
        self.group = config.group_size
        blocks = range(config.n_layers)
        self.windows = [torch.zeros(config.conv_width, config.d_inner) for _ in blocks]
        self.states = [torch.zeros(2, config.d_inner) for _ in blocks]

    def forward(self, features: Tensor) -> Tensor:
        """Features [1, 9] to raw head outputs [1, horizon * 10]."""
        x = self.model.embed(features)
        layers = zip(self.model.backbone.blocks, self.windows, self.states, strict=True)
        for block, window, state in layers:
            x = self._block(cast(KSSMBlock, block), x, window, state)
        x = F.rms_norm(x, x.shape[-1:], self.model.backbone.norm.weight, 1e-6)
        head = self.model.head
        return F.silu(head.hidden(x)) @ head.out.weight.t() + head.bias

    def _block(self, block: KSSMBlock, x: Tensor, window: Tensor, state: Tensor) -> Tensor:
        normed = F.rms_norm(x, x.shape[-1:], block.norm.weight, 1e-6)
        inputs, gate = block.in_proj(normed).chunk(2, -1)
        window.copy_(torch.cat([window[1:], inputs]))
        active = F.silu((window * block.conv.weight).sum(0, keepdim=True) + block.conv.bias)
        alpha, omega, dt, b_re, b_im = block.selection(active)
        tau = 0.5 * F.softplus(dt + block.dt_bias)
        a = tau * F.softplus(alpha + block.alpha_bias)
        w = tau * block.omega_scale * (omega + block.omega_bias)
        gain = 2.0 / ((1.0 + a) ** 2 + w**2)
        re, im = state.chunk(2, 0)
        u = tau * active
        push_re = u * b_re.repeat_interleave(self.group, -1) - (a * re - w * im)
        push_im = u * b_im.repeat_interleave(self.group, -1) - (a * im + w * re)
        new_re = re + gain * ((1.0 + a) * push_re + w * push_im)
        new_im = im + gain * ((1.0 + a) * push_im - w * push_re)
        state.copy_(torch.cat([new_re, new_im]))
        y = block.c_re * new_re + block.c_im * new_im
        grouped = F.rms_norm(y.unflatten(-1, (-1, self.group)), (self.group,), eps=1e-6)
        mixed = (grouped.flatten(-2) * block.out_norm.weight + block.skip * active) * F.silu(gate)
        x = x + block.out_proj(mixed)
        assert block.mlp is not None
        assert block.mlp_norm is not None
        return x + block.mlp(F.rms_norm(x, x.shape[-1:], block.mlp_norm.weight, 1e-6))


def torch_compiled(model: SignalForecaster) -> Step:
    """``LeanStep`` through Inductor with the weights frozen into it."""
    from torch._inductor import config

    config.freezing = True
    return torch.compile(LeanStep(model), dynamic=False)


def onnx_step(model: SignalForecaster) -> Step:
    """The whole step through onnxruntime on one thread (``pip install 'kssm[export]'`` first)."""
    from kssm.export import export_onnx

    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        export_onnx(model, path)
        session = runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    types = {"tensor(double)": np.float64, "tensor(float)": np.float32}
    feeds = {
        entry.name: np.zeros((1, *entry.shape[1:]), types[entry.type])
        for entry in session.get_inputs()
    }
    states = [name for name in feeds if name.startswith("state_")]
    results = [f"new_{name}" for name in states]

    def step(features: Tensor) -> object:
        values = next(name for name in feeds if name not in states)
        feeds[values][:] = float(features[0, 0])
        feeds.update(zip(states, session.run(results, feeds), strict=True))
        return feeds

    return step


def numba_step(model: SignalForecaster) -> Step:
    """The same as loops for numba (not a dependency: ``pip install numba`` first)."""
    weights = [np.ascontiguousarray(t.detach().numpy()) for t in _ordered(model)]
    config = kssm_sizes(model.config)
    run: Any = importlib.import_module("benchmarks.kernel_numba").run
    ends, layers = weights[:6], weights[6:]
    matrices = tuple(np.stack(layers[i::20]) for i in range(20))
    windows = np.zeros((config.n_layers, config.conv_width, config.d_inner), np.float32)
    states = np.zeros((config.n_layers, 2, config.d_inner), np.float32)
    numbers = (config.rank, config.group_size)

    def step(features: Tensor) -> object:
        return run(features.numpy()[0], tuple(ends), matrices, windows, states, numbers)

    return step


def _ordered(model: SignalForecaster) -> list[Tensor]:
    """Six weights of the ends, then twenty of each layer."""
    from kssm.forecast.native.weights import expected

    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [named[name] for name, _ in expected(model.config)]
