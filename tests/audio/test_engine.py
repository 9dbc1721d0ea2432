"""Sound in the engine: frames of any size, sessions that move, errors that leave the row."""

from __future__ import annotations

import numpy as np

from kssm.runtime import Engine
from tests.audio.support import sound, tiny_audio
from tests.runtime.support import CONFIG, feed

HORIZON, LEVELS = 12, (0.1, 0.5, 0.9)


def test_frames_of_any_size_give_one_forecast() -> None:
    values = sound(90, 2).T.numpy().copy()
    values[30:41, 0] = np.nan
    with Engine(tiny_audio(), CONFIG) as engine:
        whole, cut = engine.open(2).result(), engine.open(2).result()
        at_once = engine.append(whole, values, horizon=HORIZON, levels=LEVELS).result()
        in_pieces = feed(engine, cut, values, [3, 20, 35, 36, 60])
        again = engine.append(cut, values[:9], horizon=20, levels=LEVELS).result()
    assert np.isfinite(again.quantiles).all()
    assert (np.diff(at_once.quantiles, axis=1) > 0).all()
    assert in_pieces.quantiles.shape[0] == 2
    first = in_pieces.quantiles[..., :HORIZON]
    np.testing.assert_allclose(first, at_once.quantiles, atol=1e-4)


def test_a_session_moves() -> None:
    values = sound(70).T.numpy()
    with Engine(tiny_audio(), CONFIG) as engine, Engine(tiny_audio(), CONFIG) as other:
        key = engine.open(1).result()
        engine.append(key, values[:33], want_forecast=False).result()
        blob = engine.export(key).result()
        there = other.open(1).result()
        other.load(there, blob).result()
        results = [
            made.append(at, values[33:], horizon=HORIZON, levels=LEVELS).result()
            for made, at in ((engine, key), (other, there))
        ]
    np.testing.assert_array_equal(results[0].quantiles, results[1].quantiles)
