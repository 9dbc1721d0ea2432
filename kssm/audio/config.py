"""Shape of an audio forecaster."""

from __future__ import annotations

from dataclasses import dataclass, field

from kssm.errors import InvalidInputError
from kssm.models.kssm import KSSMConfig


@dataclass(frozen=True)
class AudioConfig:
    """Sizes in samples unless said otherwise.

    Attributes:
        sample_rate: samples a second that the model was trained for.
        patch: of one token.
        block: after so many samples linear prediction is fitted afresh; divides ``patch``.
        history: that a row keeps; what linear prediction and repetition look at.
        horizon: that one read of the outlook covers; a multiple of ``patch``, at least two.
        shortest_lag, longest_lag: range of the periods that repetition may use (both included).
        orders: of three linear predictors: two for the next sample, one to extrapolate.
        memories: decay a sample of each one's window (Barnwell 1981), below 1.
        sample_hidden: width of the network that predicts the next sample.
        outlook_hidden: width of the network that predicts the next ``horizon`` samples.
        backbone: of the recurrence over patches.
    """

    sample_rate: int = 8000
    patch: int = 40
    block: int = 10
    history: int = 400
    horizon: int = 200
    shortest_lag: int = 20
    longest_lag: int = 160
    orders: tuple[int, int, int] = (16, 64, 128)
    memories: tuple[float, float, float] = (0.975, 0.985, 0.99)
    sample_hidden: int = 128
    outlook_hidden: int = 352
    backbone: KSSMConfig = field(
        default_factory=lambda: KSSMConfig(d_model=160, n_layers=4, d_inner=192, d_mlp=192, rank=16)
    )

    def __post_init__(self) -> None:
        sizes = (self.sample_rate, self.patch, self.shortest_lag, *self.orders)
        fitting = (
            min(sizes) >= 1
            and self.shortest_lag < self.longest_lag
            and self.horizon >= 2 * self.patch
            and self.horizon % self.patch == 0
            and self.block >= 1
            and self.patch % self.block == 0
            and self.history >= max(2 * self.longest_lag + self.patch, 4 * self.patch)
            and self.history >= max(self.orders) + 32
            and 0.0 < min(self.memories) <= max(self.memories) < 1.0
        )
        if not fitting:
            raise InvalidInputError("these sizes do not fit together", code="invalid_config")

    @property
    def blocks(self) -> int:
        """Of a patch."""
        return self.patch // self.block

    @property
    def lags(self) -> int:
        """How many periods repetition chooses from."""
        return self.longest_lag - self.shortest_lag + 1
