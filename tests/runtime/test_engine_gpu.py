"""The same engine on a CUDA device: padded batches, host-device transport."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.errors import NumericalError
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine, EngineConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEVELS = (0.1, 0.5, 0.9)
CONFIG = EngineConfig(
    initial_rows=2, prefill_tokens=256, chunk_tokens=32, prefill_min=8, graph_rows=16
)


@pytest.mark.parametrize("thinning", [(), (2, 8)])
def test_streams_and_predictions_agree_with_the_cpu(thinning: tuple[int, ...]) -> None:
    series = [
        np.sin(np.arange(length) / 4.0) + length
        for length in (1, 3, 9, 33, 70)  # steps, one chunk, several chunks
    ]
    results: list[np.ndarray] = []
    for device in ("cpu", "cuda"):
        model = tiny_forecaster(thinning=thinning).to(device)
        with Engine(model, CONFIG, device) as engine:
            results.append(engine.predict(series, 20, LEVELS).result().quantiles)
            keys = [engine.open(1).result() for _ in series]
            futures = [
                engine.append(key, samples[:, None], horizon=20, levels=LEVELS)
                for key, samples in zip(keys, series, strict=True)
            ]
            streamed = [future.result().quantiles[0].T for future in futures]
            results.append(np.stack(streamed))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-3 if thinning else 1e-4)


def test_a_state_moves_between_devices() -> None:
    samples = np.sin(np.arange(40) / 4.0)[:, None]
    forecasts: list[np.ndarray] = []
    with (
        Engine(tiny_forecaster(), CONFIG) as here,
        Engine(tiny_forecaster().cuda(), CONFIG, "cuda") as there,
    ):
        key, twin = here.open(1).result(), there.open(1).result()
        here.append(key, samples).result()
        there.load(twin, here.export(key).result()).result()
        for engine, session in ((here, key), (there, twin)):
            result = engine.append(session, samples[:1], horizon=20, levels=LEVELS).result()
            forecasts.append(result.quantiles)
    np.testing.assert_allclose(forecasts[1], forecasts[0], rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 20])
def test_a_step_that_fails_leaves_its_session_as_it_was(channels: int) -> None:
    """Wide sessions are kept aside without what the step would not have changed."""
    model = tiny_forecaster(thinning=(2, 8)).to("cuda")
    samples = np.random.default_rng(0).normal(50.0, 3.0, (9, 1, channels))
    with Engine(model, CONFIG, "cuda") as engine:
        key, other = engine.open(channels).result(), engine.open(channels).result()
        for frame in samples:
            assert np.isfinite(engine.append(key, frame).result().quantiles).all()
            sound = engine.export(key).result()
            spoilt = {name: array.copy() for name, array in sound.items()}
            spoilt["layers.0.state"][-1] = np.nan
            with torch.inference_mode():  # the thread that owns the arena is idle
                engine._worker.load(engine._sessions[key], spoilt)
            fault, neighbour = engine.append(key, frame), engine.append(other, frame)
            assert isinstance(fault.exception(), NumericalError)
            assert np.isfinite(neighbour.result().quantiles).all()
            for name, array in engine.export(key).result().items():
                np.testing.assert_array_equal(array, spoilt[name], err_msg=name)
            engine.load(key, sound).result()
