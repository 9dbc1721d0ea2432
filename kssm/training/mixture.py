"""Training batches: synthetic and real series in both regimes, fixed by a seed, resumable."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.corpus import Corpus
from kssm.training.synthetic import SyntheticConfig, generate
from kssm.training.visibility import VisibilityConfig, visibility_mask


class TrainingBatch(NamedTuple):
    """``values [rows, length]`` float32, NaN where nobody knows the value, and ``visible``, bool.

    A sample that is not visible but finite is a target that the model has to foresee. The first
    sample of every row is finite and visible.
    """

    values: Tensor
    visible: Tensor


@dataclass(frozen=True)
class MixtureConfig:
    """Shapes and shares of the training stream.

    A step is short (``short_length``, with proportionally more rows) with probability
    ``short_share``. ``bulk_samples`` are generated at once and cut into batches.
    """

    rows: int = 128
    length: int = 2048
    short_share: float = 0.2
    short_length: int = 256
    real_share: float = 0.25
    bulk_samples: int = 2048 * 2048
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    visibility: VisibilityConfig = field(default_factory=VisibilityConfig)

    def __post_init__(self) -> None:
        if not (0.0 <= self.short_share <= 1.0 and 0.0 <= self.real_share <= 1.0):
            raise InvalidInputError("shares must lie in 0 ... 1", code="invalid_config")
        if self.rows < 1 or not 32 <= self.short_length <= self.length:
            raise InvalidInputError("batch shape is out of range", code="invalid_config")

    @property
    def short_rows(self) -> int:
        """Rows of a short batch: as many samples as a long one has."""
        return self.rows * self.length // self.short_length


def _host_random(key: str) -> random.Random:
    """Host randomness that is a function of ``key`` alone, on every machine."""
    return random.Random(key)  # noqa: S311  simulation, not security


class SeriesPool:
    """An endless, randomly accessible sequence of batches of one shape.

    Batches are cut from bulks that are generated when first asked for; a bulk depends on the
    seed and its number alone, so any batch can be made again.
    """

    def __init__(
        self,
        config: MixtureConfig,
        corpus: Corpus | None,
        *,
        rows: int,
        length: int,
        seed: str,
        device: torch.device,
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._rows = rows
        self._length = length
        self._seed = seed
        self._device = device
        self._batches = max(1, config.bulk_samples // (rows * length))
        self._number = -1
        self._bulk: TrainingBatch | None = None

    def batch(self, index: int) -> TrainingBatch:
        """The batch of that number, from 0."""
        number, position = divmod(index, self._batches)
        if self._bulk is None or self._number != number:
            self._bulk = None  # frees the old bulk before the new one is made
            self._bulk = self._make(number)
            self._number = number
        part = slice(position * self._rows, (position + 1) * self._rows)
        return TrainingBatch(self._bulk.values[part], self._bulk.visible[part])

    def _make(self, number: int) -> TrainingBatch:
        generator = torch.Generator(device=self._device)
        generator.manual_seed(_host_random(f"{self._seed}/{number}").getrandbits(62))
        count = self._rows * self._batches
        values = self._values(count, generator)
        visible = visibility_mask(
            count,
            self._length,
            generator=generator,
            device=self._device,
            config=self._config.visibility,
        )
        return TrainingBatch(values, visible & values.isfinite())

    def _values(self, count: int, generator: torch.Generator) -> Tensor:
        """Synthetic and real rows, shuffled."""
        real = round(count * self._config.real_share) if self._corpus is not None else 0
        parts: list[Tensor] = []
        if real < count:
            shape = (count - real, self._length)
            parts.append(
                generate(self._config.synthetic, *shape, generator=generator, device=self._device)
            )
        if self._corpus is not None and real:
            parts.append(self._corpus.sample(real, self._length, generator))
        order = torch.randperm(count, generator=generator, device=self._device)
        return torch.cat(parts)[order]


class BatchSource:
    """The training stream: ``next_batch()`` for ever, or iterate.

    The stream depends on the configuration, the corpus, ``seed`` and ``rank``. Ranks see
    different series but short and long steps at the same time. ``state_dict`` is three counters
    and the seed: loading it continues with the batch that would have come next.
    """

    def __init__(
        self,
        config: MixtureConfig,
        corpus: Corpus | None = None,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
    ) -> None:
        place = torch.device(device)
        if corpus is not None and corpus.values.device.type != place.type:
            message = f"the corpus is on {corpus.values.device}, the batches go to {place}"
            raise InvalidInputError(message, code="invalid_config")
        self._config = config
        self._seed = seed
        self._long_drawn = 0
        self._short_drawn = 0
        shapes = {
            "long": (config.rows, config.length),
            "short": (config.short_rows, config.short_length),
        }
        self._pools = {
            regime: SeriesPool(
                config,
                corpus,
                rows=rows,
                length=length,
                seed=f"{seed}/{rank}/{regime}",
                device=place,
            )
            for regime, (rows, length) in shapes.items()
        }

    @property
    def step(self) -> int:
        """Batches drawn so far."""
        return self._long_drawn + self._short_drawn

    def next_batch(self) -> TrainingBatch:
        """The next batch of the stream."""
        if _host_random(f"{self._seed}/{self.step}").random() < self._config.short_share:
            batch = self._pools["short"].batch(self._short_drawn)
            self._short_drawn += 1
        else:
            batch = self._pools["long"].batch(self._long_drawn)
            self._long_drawn += 1
        return batch

    def __iter__(self) -> Iterator[TrainingBatch]:
        while True:
            yield self.next_batch()

    def state_dict(self) -> dict[str, int]:
        """Everything needed to continue: the seed and the counters."""
        return {
            "seed": self._seed,
            "long_drawn": self._long_drawn,
            "short_drawn": self._short_drawn,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where ``state`` was taken; another seed raises ``InvalidInputError``."""
        if set(state) != set(self.state_dict()):
            raise InvalidInputError("not a batch source's state", code="invalid_config")
        if state["seed"] != self._seed:
            message = f"the state belongs to seed {state['seed']}, not {self._seed}"
            raise InvalidInputError(message, code="invalid_config")
        self._long_drawn = state["long_drawn"]
        self._short_drawn = state["short_drawn"]
