"""Language sessions: tokens in, generated tokens out. The rest of a session is as for signals."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from typing import Final

from kssm.errors import InvalidInputError
from kssm.language.rows import wrong_kind
from kssm.language.sampling import MAX_SEED, Sampling
from kssm.runtime import Engine, GenerationResult, Listener
from service import schemas
from service.lanes import failed
from service.manager import SessionManager
from service.residency import Live
from service.sessions import Reply
from service.settings import Settings
from service.vocabulary import Vocabulary
from service.wire import Frame

Hear = Callable[[int, int], None]
"""Called on the event loop with each token's number and id."""
_SEED_SPACE: Final = MAX_SEED + 1


def _nobody(_number: int, _token: int) -> None:
    """Hears nothing."""


class TextManager:
    """What only language sessions do, in the lanes of the session manager."""

    def __init__(self, settings: Settings, manager: SessionManager, engine: Engine) -> None:
        self._settings = settings
        self._manager = manager
        self._engine = engine
        self._flags: dict[tuple[str, str], set[threading.Event]] = {}

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The model's tokens; None for a forecaster."""
        return self._manager.vocabulary

    def append(
        self, tenant: str, session_id: str, message: schemas.Tokens
    ) -> asyncio.Future[Reply]:
        """Append a message's tokens; numbered as frames are."""
        if self.vocabulary is None:
            return failed(wrong_kind())
        try:
            ids = self.vocabulary.ids(message.tokens, message.text)
        except InvalidInputError as error:
            return failed(error)
        return self._manager.append(tenant, session_id, Frame(message.seq, ids), tokens=True)

    def generate(
        self,
        tenant: str,
        session_id: str,
        message: schemas.GenerateOptions,
        flag: threading.Event,
        hear: Hear = _nobody,
    ) -> asyncio.Future[GenerationResult]:
        """Go on with a session's text until it ends, or until ``flag`` is set."""
        try:
            rules, seed, stop = self._rules(message)
        except InvalidInputError as error:
            return failed(error)
        loop = asyncio.get_running_loop()

        def emit(number: int, token: int) -> None:
            loop.call_soon_threadsafe(hear, number, token)

        async def work(live: Live) -> GenerationResult:
            future = self._engine.generate(
                live.rows,
                message.max_tokens,
                rules,
                seed=seed,
                listener=Listener(emit, stop, flag),
            )
            result = await asyncio.wrap_future(future)
            live.dirty = True
            return result

        address = (tenant, session_id)
        future = self._manager.run(*address, work)
        flags = self._flags.setdefault(address, set())
        flags.add(flag)
        future.add_done_callback(lambda _: self._forget(address, flag))
        return future

    def cancel(self, tenant: str, session_id: str) -> int:
        """End the session's generations, those that wait included; how many there were."""
        flags = self._flags.get((tenant, session_id), set())
        for flag in flags:
            flag.set()
        return len(flags)

    def cancel_all(self) -> None:
        """End every generation."""
        for tenant, session_id in list(self._flags):
            self.cancel(tenant, session_id)

    def _rules(
        self, message: schemas.GenerateOptions
    ) -> tuple[Sampling, int, Callable[[int], bool]]:
        if self.vocabulary is None:
            raise wrong_kind()
        if not 1 <= message.max_tokens <= self._settings.max_tokens:
            limit = self._settings.max_tokens
            raise _bad(f"max_tokens must lie between 1 and {limit}")
        if message.seed is not None and not 0 <= message.seed <= MAX_SEED:
            raise _bad("seed must lie in 0 ... 2^63 - 1")
        rules = Sampling(
            message.temperature,
            message.top_k,
            message.top_p,
            message.repetition_penalty,
            message.frequency_penalty,
            message.presence_penalty,
        )
        seed = secrets.randbelow(_SEED_SPACE) if message.seed is None else message.seed
        return rules, seed, self.vocabulary.stop(message.stop, ignore_eos=message.ignore_eos)

    def _forget(self, address: tuple[str, str], flag: threading.Event) -> None:
        flags = self._flags.get(address, set())
        flags.discard(flag)
        if not flags:
            self._flags.pop(address, None)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_sampling")
