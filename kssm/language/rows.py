"""A language model as the runtime sees it: rows whose samples are token ids.

The engine's contract is that of a forecaster (``kssm.runtime.contract``): values go in, a state
of constant size goes on. Here a value is a token's id, and the state also keeps the last hidden
state, from which the next token is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.language.model import LanguageModel
from kssm.language.sampling import Sampling, choose, discourage, penalise, seen_in
from kssm.language.tokenizer import Tokenizer
from kssm.models.base import PrefillOutput, State, StateSpec, StepOutput, fresh_state


class LanguageRows:
    """Many independent texts of one language model, in an arena.

    ``tokenizer`` is for those who send and want text; None = ids only.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens there are."""
        return self.model.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def step_weights(self) -> object:
        """What a step reads; it never waits for the device, so CUDA graphs can hold it."""
        return (*self.model.parameters(), *self.model.buffers())

    @property
    def fingerprint(self) -> str:
        """Hex digest of configuration and weights."""
        return self.model.fingerprint

    def state_spec(self) -> StateSpec:
        """The model's entries, "hidden" (after the last token) and "position" (tokens seen)."""
        own = self.model.state_spec()
        width = self.model.config.backbone.d_model
        wide = self.model.embedding.weight.dtype == torch.float64
        hidden = torch.float64 if wide else torch.float32
        return {"position": ((1,), torch.float64), "hidden": ((width,), hidden), **own}

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` rows that have seen nothing."""
        return fresh_state(self.state_spec(), rows, self.device)

    @torch.inference_mode()
    def prefill(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,  # noqa: ARG002  (of signals; tokens have no time)
    ) -> PrefillOutput:
        """Consume token ids [B, T] (float64) from ``state``; as a forecaster's ``prefill``."""
        tokens = values.nan_to_num(nan=0.0).long()
        own = {name: state[name] for name in self.model.state_spec()}
        hidden, new_state = self.model.encode(tokens, own, lengths)
        ends = torch.full_like(tokens[:, 0], tokens.shape[1]) if lengths is None else lengths
        rows = torch.arange(len(tokens), device=tokens.device)
        last = hidden[rows, (ends - 1).clamp_min(0)].to(state["hidden"].dtype)
        kept = torch.where((ends > 0).unsqueeze(1), last, state["hidden"])
        position = state["position"] + ends.unsqueeze(1)
        after = {"position": position, "hidden": kept, **new_state}
        return PrefillOutput(after, torch.full_like(values, torch.nan))

    @torch.inference_mode()
    def step_(
        self,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor | None = None,  # noqa: ARG002
    ) -> StepOutput:
        """One token id for each of many arena rows, in place; slot -1 = padding."""
        hidden = self.model.encode_step_(values.long(), arena, slots)
        healthy = torch.isfinite(hidden).all(-1)
        rows = slots.clamp_min(0)
        column = healthy.unsqueeze(-1)
        old = arena["hidden"][rows]
        arena["hidden"][rows] = torch.where(column, hidden.to(old.dtype), old)
        arena["position"][rows] += column
        return StepOutput(torch.full_like(values, torch.nan), healthy)

    @torch.inference_mode()
    def draw(
        self,
        arena: State,
        slots: Tensor,
        rules: Sequence[Sampling],
        uniform: Tensor,
        drawn: Sequence[Sequence[int]],
    ) -> Tensor:
        """The next token of rows ``slots`` [N], by each row's own rules and random number.

        ``drawn`` are the tokens of each row that its penalties count.
        """
        logits = self.model.logits(arena["hidden"][slots])
        if any(rule.repetition_penalty != 1 for rule in rules):
            logits = penalise(logits, seen_in(drawn, logits), rules)
        return choose(discourage(logits, drawn, rules), rules, uniform)

    def forecast_entries(self, horizon: int) -> Collection[str]:  # noqa: ARG002
        """Nothing: a language model does not forecast."""
        return ()

    def forecast(
        self,
        state: State,  # noqa: ARG002
        horizon: int,  # noqa: ARG002
        levels: Sequence[float],  # noqa: ARG002
    ) -> Tensor:
        """Refused (``wrong_model_kind``)."""
        raise wrong_kind()


def wrong_kind() -> InvalidInputError:
    """The error of asking a model for what only the other kind does."""
    return InvalidInputError(
        "this model cannot do that: signals are for forecasters, tokens for language models",
        code="wrong_model_kind",
    )
