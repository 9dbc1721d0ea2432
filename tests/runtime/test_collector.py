"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc

from kssm.runtime.collector import OBJECTS, relax_collector


def test_the_collector_is_relaxed_and_still_there() -> None:
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        relax_collector()
        assert gc.isenabled()
        assert gc.get_threshold()[0] == OBJECTS
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
