"""Language models: any backbone of the registry between an embedding and an output layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.checkpoint.files import fingerprint
from kssm.errors import InvalidInputError
from kssm.language.config import LanguageConfig
from kssm.language.generation import Generation, Limits, Piece
from kssm.language.sampling import Sampling
from kssm.models.base import State, StateSpec
from kssm.models.kssm import KSSMConfig
from kssm.models.registry import build


class PrefillOutput(NamedTuple):
    """logits: [B, vocabulary] after each row's last valid token; state: after it."""

    logits: Tensor
    state: State


class LanguageModel(nn.Module):
    """Maps tokens to logits of the next one, carrying a state of constant size a row.

    Matrices may be fp16 or bf16 (``kssm.checkpoint.convert_``): the residual stream, norms and
    recurrences stay in fp32 then, and logits are fp32.
    """

    def __init__(self, config: LanguageConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5 if config.tied else 1.0)
        self.backbone = build(
            config.model, config.backbone, gradient_checkpointing=gradient_checkpointing
        )
        self.head = None if config.tied else nn.Linear(width, config.vocab_size, bias=False)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=width**-0.5)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def fingerprint(self) -> str:
        """Hex digest of configuration and weights: states fit exactly the same fingerprint."""
        return fingerprint(repr(sorted(self.config.to_mapping().items())), self)

    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of what one row carries from a token to the next."""
        return self.backbone.state_spec()

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` rows that have seen nothing, on the model's device."""
        return self.backbone.initial_state(rows)

    def forward(
        self, tokens: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits after every token; differentiable.

        Args:
            tokens: [B, T] int64.
            state: rows to continue from, never modified; None = fresh.
            lengths: [B] number of valid tokens of each row, None = all.

        Returns:
            Logits [B, T, vocabulary] (of no meaning after a row's last valid token) and the
            state after it.
        """
        hidden, new_state = self.encode(tokens, state, lengths)
        return self.logits(hidden), new_state

    def prefill(
        self, tokens: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> PrefillOutput:
        """As ``forward``, with the logits after each row's last valid token only."""
        hidden, new_state = self.encode(tokens, state, lengths)
        if lengths is None:
            return PrefillOutput(self.logits(hidden[:, -1]), new_state)
        rows = torch.arange(len(hidden), device=hidden.device)
        return PrefillOutput(self.logits(hidden[rows, (lengths - 1).clamp_min(0)]), new_state)

    def step_(self, tokens: Tensor, arena: State, slots: Tensor) -> Tensor:
        """One token for each of many arena rows, in place: [N] int64 -> logits [N, vocabulary].

        ``arena`` and ``slots`` as in ``SequenceModel.step_``.
        """
        return self.logits(self.encode_step_(tokens, arena, slots))

    def encode(
        self, tokens: Tensor, state: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """Hidden states [B, T, d_model] before the output layer, and the new state."""
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise InvalidInputError("tokens must be [B, T] with T > 0", code="wrong_shape")
        with self._precision():
            return self.backbone(self._embed(tokens), state, lengths)

    def encode_step_(self, tokens: Tensor, arena: State, slots: Tensor) -> Tensor:
        """As ``step_``, hidden states [N, d_model] instead of logits."""
        with self._precision():
            return self.backbone.step_(self._embed(tokens), arena, slots)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d_model] -> [..., vocabulary], fp32 (fp64)."""
        matrix = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(hidden.to(matrix.dtype), matrix)
        return logits if logits.dtype == torch.float64 else logits.float()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 64,
        sampling: Sampling | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Continue every prompt; constant time and memory a token, however long the text.

        Args:
            prompts: token ids, of any lengths >= 1.
            max_tokens: most tokens to add to each.
            sampling: rules of choice, None = plain sampling at temperature 1.
            seed: row i draws with seed + i, whatever the others do; None = a random one.
            generator: draws the seeds where ``seed`` is None.
            stop_tokens: what ends a row (it is part of the result); None = the configuration's
                ``eos_tokens``.

        Returns:
            The added tokens of each prompt.

        Raises:
            InvalidInputError: ``invalid_tokens``, ``invalid_sampling``.
        """
        pieces = self.stream(
            prompts,
            max_tokens,
            sampling,
            seed=seed,
            generator=generator,
            stop_tokens=stop_tokens,
        )
        texts: list[list[int]] = [[] for _ in prompts]
        for piece in pieces:
            texts[piece.row].append(piece.token)
        return texts

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 64,
        sampling: Sampling | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[Piece]:
        """``generate``, token by token as they are made; arguments are checked at once."""
        stops = self.config.eos_tokens if stop_tokens is None else stop_tokens
        limits = Limits.checked(max_tokens, sampling or Sampling(), stops, self.config.vocab_size)
        return Generation(self, prompts, limits, seed, generator).run()

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        return embedded if embedded.dtype == torch.float64 else embedded.float()

    def _precision(self) -> AbstractContextManager[object]:
        """Products in the matrices' dtype where that is shorter than the residual stream's."""
        dtype = self.embedding.weight.dtype
        if dtype in {torch.float16, torch.bfloat16}:
            return torch.autocast(self.device.type, dtype)
        return nullcontext()


class KSSMLMHeadModel(LanguageModel):
    """A language model around KSSM."""

    def __init__(self, config: LanguageConfig, *, gradient_checkpointing: bool = False) -> None:
        if not isinstance(config.backbone, KSSMConfig):
            raise InvalidInputError("KSSMLMHeadModel needs a KSSMConfig", code="invalid_config")
        super().__init__(config, gradient_checkpointing=gradient_checkpointing)
