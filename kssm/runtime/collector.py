"""Python's garbage collector in a process that serves."""

from __future__ import annotations

import gc
from typing import Final

OBJECTS: Final = 100_000
"""New objects after which the collector looks at them: more than a round of thousands of frames
makes, which are gone by then."""


def relax_collector() -> None:
    """Have the collector leave alone what there is now, and look at the rest seldom.

    For a whole process, once model and libraries are loaded: to go through their objects and
    through frames under way again and again costs a third of the engine's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS, 20, 50)
