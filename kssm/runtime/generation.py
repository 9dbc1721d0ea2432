"""The part of a tick that makes text: draw a token for every generating session, tell it on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from kssm.errors import KSSMError
from kssm.language.sampling import uniforms
from kssm.runtime.executor import Executor
from kssm.runtime.jobs import Append, Generate
from kssm.runtime.outcomes import Outcome, attempt
from kssm.runtime.schedule import Slice

Work = tuple[Slice, Append]


class Generator:
    """Draws and tells tokens; the step that consumes them is that of all streams."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def withdraw(self, work: Sequence[Work]) -> tuple[list[Work], list[Outcome]]:
        """The work without what was cancelled, and the ends of the latter."""
        ended = [
            job for _, job in work if isinstance(job, Generate) and job.listener.cancelled.is_set()
        ]
        if not ended:
            return list(work), []
        rest = [(step, job) for step, job in work if job not in ended]
        return rest, [Outcome(job, job.result("cancelled")) for job in ended]

    def draw(self, work: Sequence[Work]) -> None:
        """Draw the next token of each generating job into its values."""
        drawing = [(step, job) for step, job in work if isinstance(job, Generate)]
        if not drawing:
            return
        slots = np.concatenate([job.session.rows.slots for _, job in drawing])
        numbers = [step.start for step, _ in drawing]
        random = uniforms([job.seed for _, job in drawing], numbers)
        rules, drawn = [job.rules for _, job in drawing], [job.drawn for _, job in drawing]
        tokens = self._executor.draw(slots, rules, random, drawn)
        for (step, job), token in zip(drawing, tokens.tolist(), strict=True):
            job.values[step.start, 0] = token

    def tell(self, work: Sequence[Work], faulty: Collection[Append]) -> list[Outcome]:
        """Hand out the tokens that were consumed; returns the generations that ended."""
        outcomes: list[Outcome] = []
        for step, job in work:
            if not isinstance(job, Generate) or job in faulty:
                continue
            last = attempt(lambda step=step, job=job: _told(step, job))
            if isinstance(last, KSSMError):  # whoever listens failed: a generation without ears
                self._undo(job)
                outcomes.append(Outcome(job, error=last))
            elif last:
                outcomes.append(Outcome(job, job.result("stop")))
            elif step.stop == job.tokens:
                outcomes.append(Outcome(job, job.result("length")))
        return outcomes

    def _undo(self, job: Generate) -> None:
        if job.held is not None:
            self._executor.arena.write(job.session.rows.slots, job.held.rows())


def _told(step: Slice, job: Generate) -> bool:
    """Tell the job's listener of the token; whether it is the last."""
    token = int(job.values[step.start, 0])
    job.drawn.append(token)
    job.listener.emit(step.start, token)
    return job.listener.stop(token)
