"""The packed copy of a forecaster's weights, and whether it still is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from kssm.forecast import contest
from kssm.forecast.distribution import SCORED_HORIZONS
from kssm.forecast.native.library import Library, Sizes
from kssm.forecast.scaler import FEATURES
from kssm.models.kssm import KSSMConfig
from kssm.quantization import WeightFormat, format_of

if TYPE_CHECKING:
    from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
    from kssm.models import StateSpec

Shape = tuple[int, ...]

_UNUSED = frozenset({"head.spread"})  # constants the C code has of its own
_ALIGNMENT: Final = 64  # bytes of a cache line
_FORMATS: Final[tuple[WeightFormat, ...]] = ("float32", "float16", "bfloat16", "int8")
"""In the order of ``Format`` in matrix.h."""
_MOST_COPIES: Final = 15
"""``MOST_COPIES`` in copies.h."""
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_version = attrgetter("_version")


def sizes_of(config: ForecasterConfig, eps: float, weights: WeightFormat) -> Sizes:
    """The configuration as the C code reads it."""
    b = kssm_sizes(config)
    groups = b.d_inner // b.group_size
    ends = (config.head_hidden, config.head_horizon)
    middle = (b.d_model, b.n_layers, b.d_inner, b.d_mlp, b.rank, groups, b.conv_width)
    return Sizes(FEATURES, *middle, *ends, _FORMATS.index(weights), eps)


def expected(config: ForecasterConfig) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every weight, in the order of ``ends_at`` and ``layer_at`` in model.h."""
    b, hidden, outputs = kssm_sizes(config), config.head_hidden, config.head_horizon * 10
    yield "embed.weight", (b.d_model, FEATURES)
    yield "embed.bias", (b.d_model,)
    yield "backbone.norm.weight", (b.d_model,)
    yield "head.hidden.weight", (hidden, b.d_model)
    yield "head.out.weight", (outputs, hidden)
    yield "head.bias", (outputs,)
    for i in range(b.n_layers):
        for name, shape in _layer(config):
            yield f"backbone.blocks.{i}.{name}", shape


def _layer(config: ForecasterConfig) -> Iterator[tuple[str, Shape]]:
    b = kssm_sizes(config)
    inner, groups = b.d_inner, b.d_inner // b.group_size
    yield "norm.weight", (b.d_model,)
    yield "in_proj.weight", (2 * inner, b.d_model)
    yield "conv.weight", (b.conv_width, inner)
    yield "conv.bias", (inner,)
    yield "select.weight", (3 * b.rank + 2 * groups, inner)
    for name in ("alpha_up.weight", "omega_up.weight", "dt_up.weight"):
        yield name, (inner, b.rank)
    for name in ("alpha_bias", "omega_bias", "omega_scale", "dt_bias", "c_re", "c_im"):
        yield name, (inner,)
    yield "skip", (inner,)
    yield "out_norm.weight", (inner,)
    yield "out_proj.weight", (b.d_model, inner)
    if b.d_mlp:
        yield "mlp_norm.weight", (b.d_model,)
        yield "mlp.up.weight", (2 * b.d_mlp, b.d_model)
        yield "mlp.down.weight", (b.d_model, b.d_mlp)


def kssm_sizes(config: ForecasterConfig) -> KSSMConfig:
    """The sizes of the backbone, which must be KSSM."""
    assert isinstance(config.backbone, KSSMConfig), "the C code computes KSSM only"
    return config.backbone


def is_matrix(name: str, shape: Shape) -> bool:
    """Whether this weight has the model's weight format (the embedding always is fp32)."""
    return len(shape) == 2 and name != "embed.weight" and not name.endswith("conv.weight")


class Layout(NamedTuple):
    """The state of rows as the C code reads it: entries in its order, and what copies there are.

    ``mature`` are the blocks before each copy takes part.
    """

    entries: list[tuple[str, Shape, torch.dtype]]
    factors: tuple[int, ...] = ()
    mature: tuple[int, ...] = ()


def _entries(spec: StateSpec) -> list[tuple[str, Shape, torch.dtype]]:
    return [(name, *entry) for name, entry in spec.items()]


def _layout(model: SignalForecaster) -> Layout | None:
    """Of rows at all their resolutions; None if the C code has no room for so many."""
    factors = model.config.thinning
    if len(factors) > _MOST_COPIES:
        return None
    mature = tuple(contest.mature_blocks(factor, model.config.head_horizon) for factor in factors)
    return Layout(_entries(model.state_spec()), factors, mature)


class Weights:
    """A snapshot of a model's weights for the C code, or of why there is none.

    ``address`` is where the packed numbers start, None if the C code cannot run this model: one
    whose weights are not plain tensors on the CPU in a format it knows, or which has other weights
    than it knows of. Matrices in fp32 whose numbers all fit into fp16 are packed as fp16: the
    results are the same to the bit, and half as much is read.
    """

    def __init__(self, model: SignalForecaster, library: Library) -> None:
        self.single = Layout(_entries(model.row_spec()))
        self.whole = _layout(model)
        self._tensors = list(_named(model).values())
        # Aliases keep the memory alive, so that no other tensor can come to lie at its address.
        self._aliases = [tensor.detach() for tensor in self._tensors]
        self._packed: Tensor | None = None
        self.address: int | None = None
        self.format = format_of(model)
        self._samples, self._bias = _samples(model), _sample(model.head.bias)
        # Where the head keeps it: found faster than through two modules.
        self._home: dict[str, Tensor] = vars(model.head)["_parameters"]
        self._versions = _versions(self._tensors)
        if self._versions is not None and _is_known(model, self.format):
            matrices = _matrices(model)
            if self.format == "float32" and all(map(_fits_half, matrices.values())):
                self.format = "float16"
            self.sizes = sizes_of(model.config, model.backbone.norm.eps, self.format)
            self._pack(model, matrices, library)

    @property
    def nbytes(self) -> int:
        """Of the packed copy."""
        return 0 if self._packed is None else self._packed.nbytes

    def seem_current(self) -> bool:
        """Whether the model was neither loaded nor moved: of its weights one is looked at."""
        bias = self._home["bias"]
        try:  # not `_sample`: it is done for every sample, where no call is in the caches
            return self._bias == (bias.data_ptr(), bias._version)
        except RuntimeError:
            return self._bias == (bias.data_ptr(), -1)

    def are_current(self, model: SignalForecaster) -> bool:
        """Whether the model's weights are still the ones that were packed.

        Every write to a weight is seen. Of replaced and moved weights only a few are looked at:
        that happens to a whole module at once, and to look at each would cost 5% of a step.
        """
        return self._samples == _samples(model) and self._versions == _versions(self._tensors)

    def _pack(self, model: SignalForecaster, matrices: dict[str, Tensor], library: Library) -> None:
        named, tensors = _named(model), list[Tensor]()
        for name, _ in expected(model.config):
            tensor = named[name].detach()
            if name in matrices and self.format == "float16":
                tensor = tensor.half()
            tensors.append(tensor.contiguous())
            if name in matrices and self.format == "int8":
                tensors.append(named[_unit_of(name)].contiguous())
        packed = torch.zeros(library.packed_size(self.sizes) + _ALIGNMENT, dtype=torch.uint8)
        address = -(-packed.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        self.sizes.kept = kept_bytes(packed.nbytes, _cache_size())
        library.pack(self.sizes, [tensor.data_ptr() for tensor in tensors], address)
        self._packed, self.address = packed, address


def kept_bytes(packed: int, cache: int) -> int:
    """How much of the packed weights a step of one row keeps in a cache too small for all."""
    return cache // 6 if packed > cache else 0


def _cache_size() -> int:
    """Bytes of a core's second-level cache; 0 where the system does not say."""
    try:
        text = _CACHE.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    number = text.removesuffix("K")
    return 1024 * int(number) if number.isdecimal() else 0


def _versions(tensors: Sequence[Tensor]) -> list[int] | None:
    """How often each was written to; None for inference tensors, which do not count that."""
    try:
        return list(map(_version, tensors))
    except RuntimeError:
        return None


def _samples(model: SignalForecaster) -> list[tuple[int, int]]:
    some = (model.embed.weight, model.backbone.norm.weight, model.head.bias)
    return [_sample(tensor) for tensor in some]


def _sample(tensor: Tensor) -> tuple[int, int]:
    """Where the tensor's numbers are, and how often they were written to."""
    try:
        return tensor.data_ptr(), tensor._version
    except RuntimeError:  # an inference tensor does not count
        return tensor.data_ptr(), -1


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _matrices(model: SignalForecaster) -> dict[str, Tensor]:
    named = _named(model)
    return {name: named[name] for name, shape in expected(model.config) if is_matrix(name, shape)}


def _fits_half(matrix: Tensor) -> bool:
    return torch.equal(matrix.half().float(), matrix)


def _unit_of(name: str) -> str:
    return f"{name.removesuffix('weight')}unit"


def _is_known(model: SignalForecaster, weights: WeightFormat) -> bool:
    """Whether the model has exactly the weights the C code reads, in its formats on the CPU."""
    if model.config.head_horizon < SCORED_HORIZONS:
        return False
    known = {name: (shape, torch.float32) for name, shape in expected(model.config)}
    for name, (shape, _) in list(known.items()):
        if is_matrix(name, shape):
            known[name] = (shape, getattr(torch, weights))
            if weights == "int8":
                known[_unit_of(name)] = (shape[:1], torch.float32)
    found = {n: (tuple(t.shape), t.dtype) for n, t in _named(model).items() if n not in _UNUSED}
    return found == known and all(t.device.type == "cpu" for t in _named(model).values())
