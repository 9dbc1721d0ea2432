"""The part of a tick that makes text: draw a token for every generating session, tell it on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kssm.errors import KSSMError
from kssm.language.sampling import uniforms
from kssm.runtime.executor import Executor
from kssm.runtime.jobs import Append, Generate
from kssm.runtime.layout import Layout
from kssm.runtime.outcomes import Outcome, attempt
from kssm.runtime.schedule import Slice

Work = Sequence[Slice[Append]]


class Generator:
    """Draws and tells tokens; the step that consumes them is that of all streams."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def withdraw(self, work: Work) -> tuple[Work, list[Outcome]]:
        """The work without what was cancelled, and the ends of the latter."""
        ended = [job for job, _ in _generating(work) if job.listener.cancelled.is_set()]
        if not ended:
            return work, []
        rest = [step for step in work if step.item not in ended]
        return rest, [Outcome(job, job.result("cancelled")) for job in ended]

    def draw(self, work: Work) -> None:
        """Draw the next token of each generating job into its values."""
        drawing = _generating(work)
        if not drawing:
            return
        jobs, numbers = [job for job, _ in drawing], [number for _, number in drawing]
        slots = Layout.of(jobs).slots
        random = uniforms([job.seed for job in jobs], numbers)
        rules, drawn = [job.rules for job in jobs], [job.drawn for job in jobs]
        tokens = self._executor.draw(slots, rules, random, drawn)
        for (job, number), token in zip(drawing, tokens.tolist(), strict=True):
            job.values[number, 0] = token

    def tell(self, work: Work, faulty: Collection[Append]) -> list[Outcome]:
        """Hand out the tokens that were consumed; returns the generations that ended."""
        outcomes: list[Outcome] = []
        for job, number in _generating(work):
            if job in faulty:
                continue
            last = attempt(lambda job=job, number=number: _told(job, number))
            if isinstance(last, KSSMError):  # whoever listens failed: a generation without ears
                self._undo(job)
                outcomes.append(Outcome(job, error=last))
            elif last:
                outcomes.append(Outcome(job, job.result("stop")))
            elif number + 1 == job.tokens:
                outcomes.append(Outcome(job, job.result("length")))
        return outcomes

    def _undo(self, job: Generate) -> None:
        if job.held is not None:
            self._executor.arena.write(job.session.rows.slots, job.held.rows())


def _generating(work: Work) -> list[tuple[Generate, int]]:
    """The generating jobs and the numbers of their tokens."""
    return [(job, start) for job, start, _ in work if isinstance(job, Generate)]


def _told(job: Generate, number: int) -> bool:
    """Tell the job's listener of the token; whether it is the last."""
    token = int(job.values[number, 0])
    job.drawn.append(token)
    job.listener.emit(number, token)
    return job.listener.stop(token)
