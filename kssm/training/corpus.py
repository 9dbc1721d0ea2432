"""Real series in one flat tensor, and random training crops of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.crops import CropConfig, augment_crops, draw_crops
from kssm.training.readers import READERS, SourceSeries
from kssm.training.synthetic.sampler import Sampler, device_generator


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_corpus")


@dataclass(frozen=True)
class CorpusConfig:
    """Which series are used, and how often.

    A source (one file) is drawn in proportion to the root of its samples, counted up to
    ``source_samples_cap``, times its entry in ``source_weights`` (by file name without suffix;
    1 if absent), but never for more than ``source_share_cap`` of all draws. Within a source a
    series is drawn in proportion to the root of its length, counted up to ``series_length_cap``.
    """

    exclude: tuple[str, ...] = ()
    source_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    source_samples_cap: int = 3_000_000
    source_share_cap: float = 0.25
    series_length_cap: int = 20_000
    min_length: int = 32
    crop: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        if any(not weight >= 0.0 for weight in self.source_weights.values()):
            raise InvalidInputError("source weights must be >= 0", code="invalid_config")
        if not 0.0 < self.source_share_cap <= 1.0 or self.min_length < 2:
            raise InvalidInputError("corpus limits are out of range", code="invalid_config")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Series of unequal length, stored flat on one device.

    ``values`` float32 [samples] with NaN for missing ones; ``starts`` and ``lengths`` int64
    [series]; ``weights`` float64 [series], summing to 1; ``source_ids`` int64 [series] index
    ``sources``, the names.
    """

    values: Tensor
    starts: Tensor
    lengths: Tensor
    weights: Tensor
    source_ids: Tensor
    sources: tuple[str, ...]
    config: CorpusConfig

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        config: CorpusConfig | None = None,
    ) -> Corpus:
        """Reads a file, or every .npz, .csv, .parquet and .wav file of a folder, by name.

        Other files are passed over. A file that cannot be used, an unknown name in ``exclude``
        or ``source_weights``, and a folder without a usable series raise ``InvalidInputError``
        (``invalid_corpus``) that says which.
        """
        settings = config or CorpusConfig()
        files = _select(_corpus_files(Path(path)), settings)
        sources = [(file.stem, READERS[file.suffix.lower()](file)) for file in files]
        return cls.from_series(sources, device=device, config=settings)

    @classmethod
    def from_series(
        cls,
        sources: Sequence[tuple[str, SourceSeries]],
        *,
        device: torch.device | str = "cpu",
        config: CorpusConfig | None = None,
    ) -> Corpus:
        """Builds a corpus from series in memory: ``(source name, its series)`` pairs."""
        settings = config or CorpusConfig()
        series: list[np.ndarray] = []
        source_ids: list[int] = []
        names: list[str] = []
        for name, found in sources:
            usable = [x for x in map(_trimmed, found) if len(x) >= settings.min_length]
            if usable:
                source_ids += [len(names)] * len(usable)
                names.append(name)
                series += usable
        if not series:
            message = f"no series of at least {settings.min_length} samples found"
            raise _invalid(message)
        return cls._assemble(series, np.array(source_ids), names, settings, torch.device(device))

    @classmethod
    def _assemble(
        cls,
        series: list[np.ndarray],
        source_ids: np.ndarray,
        names: list[str],
        config: CorpusConfig,
        device: torch.device,
    ) -> Corpus:
        lengths = np.array([len(x) for x in series], dtype=np.int64)
        weights = _series_weights(lengths, source_ids, names, config)
        return cls(
            values=torch.from_numpy(np.concatenate(series)).to(device),
            starts=torch.from_numpy(np.cumsum(lengths) - lengths).to(device),
            lengths=torch.from_numpy(lengths).to(device),
            weights=torch.from_numpy(weights).to(device),
            source_ids=torch.from_numpy(source_ids).to(device),
            sources=tuple(names),
            config=config,
        )

    def __len__(self) -> int:
        """Number of series."""
        return self.lengths.shape[0]

    @torch.no_grad()
    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Random crops ``[count, length]`` float32, NaN = missing.

        Crops are resampled or aggregated at random, start with a present value, have deviation
        1 times a log-normal factor around their natural level, and are mixed up and flipped now
        and then. A series shorter than ``length`` is followed by missing samples and is drawn
        less often in proportion.
        """
        device = self.values.device
        sampler = Sampler(count, length, False, device_generator(generator, device), device)
        weights = self.weights * (self.lengths / length).clamp(max=1.0)
        edges = weights.cumsum(0)
        target = sampler.uniform(0.0, 1.0).double().squeeze(1) * edges[-1]
        row = torch.searchsorted(edges, target, right=True).clamp(max=len(self) - 1)
        crops = draw_crops(
            sampler, self.values, self.starts[row], self.lengths[row], self.config.crop
        )
        return augment_crops(sampler, crops, self.config.crop)


def _corpus_files(path: Path) -> list[Path]:
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file())
    else:
        raise _invalid(f"{path} does not exist")
    known = [file for file in files if file.suffix.lower() in READERS]
    if not known:
        raise _invalid(f"{path} holds none of {', '.join(sorted(READERS))}")
    return known


def _select(files: list[Path], config: CorpusConfig) -> list[Path]:
    stems = {file.stem for file in files}
    unknown = sorted((set(config.exclude) | set(config.source_weights)) - stems)
    if unknown:
        raise _invalid(f"no such source: {', '.join(unknown)}")
    return [file for file in files if file.stem not in config.exclude]


def _trimmed(series: np.ndarray) -> np.ndarray:
    """Float32 with infinities as NaN, without missing samples at either end."""
    x = np.asarray(series, dtype=np.float32)
    x = np.where(np.isfinite(x), x, np.float32(np.nan))
    present = np.flatnonzero(~np.isnan(x))
    return x[present[0] : present[-1] + 1] if len(present) else x[:0]


def _series_weights(
    lengths: np.ndarray, source_ids: np.ndarray, names: Sequence[str], config: CorpusConfig
) -> np.ndarray:
    """Float64 [series], summing to 1."""
    samples = np.bincount(source_ids, weights=lengths)
    factors = np.array([config.source_weights.get(name, 1.0) for name in names])
    shares = np.sqrt(np.minimum(samples, config.source_samples_cap)) * factors
    if not shares.sum() > 0.0:
        raise _invalid("every source has weight 0")
    shares = capped_shares(shares / shares.sum(), config.source_share_cap)
    within = np.sqrt(np.minimum(lengths, config.series_length_cap))
    return shares[source_ids] * within / np.bincount(source_ids, weights=within)[source_ids]


def capped_shares(shares: np.ndarray, cap: float) -> np.ndarray:
    """Shares summing to 1 of which none exceeds ``cap``; the excess goes to the others in
    proportion. With too few positive ones for that, they become equal."""
    positive = shares > 0.0
    if positive.sum() * cap <= 1.0:
        return positive / positive.sum()
    capped = np.zeros(len(shares), dtype=bool)
    result = shares
    while (result > cap * (1.0 + 1e-12)).any():
        capped |= result > cap
        rest = 1.0 - cap * capped.sum()
        free = np.where(capped, 0.0, shares)
        result = np.where(capped, cap, free * rest / free.sum())
    return result
