"""From a caller's arguments to a validated job; runs in the caller's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.gaps import tokens_per_sample
from kssm.language.rows import wrong_kind
from kssm.language.sampling import Sampling, check_seed
from kssm.runtime.admission import Lane
from kssm.runtime.config import EngineConfig
from kssm.runtime.contract import Floats, StateSpec
from kssm.runtime.jobs import Append, Generate, Listener, Predict, Read, Session, Watch
from kssm.runtime.schedule import plan_batches
from kssm.runtime.snapshot import check_tensors
from kssm.runtime.validation import Query, check_ids, check_query, check_series, to_tokens

KNOWN_QUERIES: Final = 256
"""Questions that are not checked again."""


class Requests:
    """Makes jobs; every method raises a KSSMError for what the device must never see.

    ``vocabulary``: tokens that a language model knows, None for a forecaster.
    """

    def __init__(
        self, config: EngineConfig, spec: StateSpec, vocabulary: int | None = None
    ) -> None:
        self._config = config
        self._spec = spec
        self._vocabulary = vocabulary
        self._known = lru_cache(KNOWN_QUERIES, typed=True)(self._query)

    def append(
        self,
        session: Session,
        values: Floats,
        dt: Floats | None,
        asked: tuple[int, Sequence[float]] | None,
    ) -> Append:
        """Whether the samples run as steps or in chunks depends on their number alone."""
        config = self._config
        if self._vocabulary is not None:
            check_ids(values, dt, self._vocabulary)
            if asked is not None:
                raise wrong_kind()
        tokens, steps = to_tokens(
            values,
            dt,
            channels=session.channels,
            max_gap=config.max_gap,
            max_tokens=config.max_pending,
        )
        return Append(
            session=session,
            values=tokens,
            dt=steps,
            query=None if asked is None else self._asked(*asked),
            lane=Lane.STREAM if len(tokens) < config.prefill_min else Lane.BULK,
            cost=tokens.size,
        )

    def generate(
        self,
        session: Session,
        max_tokens: int,
        rules: Sampling,
        seed: int,
        listener: Listener,
    ) -> Generate:
        """At most ``max_tokens`` tokens, drawn by ``rules`` with the numbers of ``seed``.

        A session does not remember its tokens, so penalties count those of this generation.
        """
        if self._vocabulary is None or session.channels != 1:
            raise wrong_kind()
        if not 1 <= max_tokens <= self._config.max_pending:
            message = f"max_tokens must lie between 1 and {self._config.max_pending}"
            raise InvalidInputError(message, code="invalid_sampling")
        return Generate(
            session=session,
            values=np.zeros((max_tokens, 1)),
            dt=None,
            query=None,
            rules=rules,
            seed=check_seed(seed),
            listener=listener,
        )

    def read(self, session: Session, horizon: int, levels: Sequence[float]) -> Read:
        """A forecast without new samples has no scores."""
        return Read(session=session, query=self._asked(horizon, levels))

    def state(self, tensors: Mapping[str, NDArray[Any]], channels: int) -> dict[str, NDArray[Any]]:
        """Private copies of checked state tensors."""
        copies = {name: np.array(array) for name, array in tensors.items()}
        check_tensors(copies, self._spec, channels)
        return copies

    def predict(
        self,
        series: Sequence[Floats],
        dt: Sequence[Floats | None] | None,
        horizon: int,
        levels: Sequence[float],
        *,
        watched: bool,
    ) -> Predict:
        """Series of similar lengths share a batch; ``watched``: with an anomaly monitor each."""
        config = self._config
        query = self._query(horizon, levels)
        tokens = self._series(series, dt)
        lengths = [len(values) for values, _ in tokens]
        return Predict(
            series=tokens,
            query=query,
            batches=deque(plan_batches(lengths, config.chunk_tokens, config.prefill_tokens)),
            quantiles=np.empty((len(tokens), query.horizon, len(query.levels))),
            watches=[Watch(ends) for ends in self._ends(series, dt)] if watched else [],
            lane=Lane.BULK,
            cost=sum(lengths),
        )

    def _ends(
        self, series: Sequence[Floats], dt: Sequence[Floats | None] | None
    ) -> Iterator[NDArray[np.int64]]:
        """Of each series, which of its tokens are samples."""
        for index, samples in enumerate(series):
            steps = None if dt is None else dt[index]
            spans = (
                np.ones(len(samples), dtype=np.int64)
                if steps is None
                else tokens_per_sample(steps, self._config.max_gap)
            )
            yield np.cumsum(spans) - 1

    def _series(
        self, series: Sequence[Floats], dt: Sequence[Floats | None] | None
    ) -> list[tuple[Floats, Floats]]:
        if not len(series):
            raise InvalidInputError("there are no series", code="empty_frame")
        if dt is not None and len(dt) != len(series):
            raise InvalidInputError("dt needs one entry a series", code="invalid_timestamps")
        spare = self._config.max_pending  # tokens that bridged gaps may add, in all
        tokens: list[tuple[Floats, Floats]] = []
        for index, samples in enumerate(series):
            column = check_series(samples)
            values, steps = to_tokens(
                column,
                None if dt is None else dt[index],
                channels=1,
                max_gap=self._config.max_gap,
                max_tokens=len(column) + spare,
            )
            spare -= len(values) - len(column)
            tokens.append((values[:, 0], np.ones(len(values)) if steps is None else steps))
        return tokens

    def _asked(self, horizon: int, levels: Sequence[float]) -> Query:
        """Sessions ask the same again and again: such questions are checked once."""
        try:
            return self._known(horizon, levels)
        except TypeError:  # of levels that cannot be a key
            return self._query(horizon, levels)

    def _query(self, horizon: int, levels: Sequence[float]) -> Query:
        if self._vocabulary is not None:
            raise wrong_kind()
        return check_query(horizon, levels, self._config.max_horizon)
