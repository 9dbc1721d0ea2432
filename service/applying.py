"""What is done to a session in its turn: frames submitted and committed, attachments, a look."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from kssm.errors import KSSMError
from kssm.runtime import Engine
from service.lanes import Ending
from service.residency import Live
from service.sessions import Admitted, Reply, Status


def submit(engine: Engine, live: Live, admitted: Admitted, *, forecasts: bool) -> Future[Any]:
    """Hand a frame's samples (or tokens: no ``forecasts``) to the engine."""
    own = live.session.settings
    if not len(admitted.values):
        return engine.forecast(live.rows, own.horizon, own.quantiles)
    return engine.append(
        live.rows,
        admitted.values,
        dt=admitted.dt,
        horizon=own.horizon,
        levels=own.quantiles,
        want_forecast=forecasts,
    )


def finish(live: Live, admitted: Admitted, future: Ending) -> Reply:
    """Commit a frame that the engine has done with; raises what it failed with."""
    try:
        result = future.result()
    except KSSMError as error:
        if error.details.get("applied"):
            live.session.commit(admitted, None)
            live.dirty = True
        raise
    live.dirty = True
    return live.session.commit(admitted, result)


async def attach(live: Live) -> Status:
    """Make the caller's the one attachment of the session."""
    live.session.attachments += 1
    return live.session.status()


async def status(live: Live) -> Status:
    """The session now."""
    return live.session.status()
