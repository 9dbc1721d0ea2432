"""The network: patches of samples through a recurrence, read by two heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.audio.analysis import Period, Prediction, find_period, predict_linearly
from kssm.audio.config import AudioConfig
from kssm.audio.next_sample import Guess, NextSample
from kssm.audio.outlook import Outlook
from kssm.audio.tokens import describe, features
from kssm.models.base import State
from kssm.models.kssm import KSSM
from kssm.models.layers import init_linear


class Survey(NamedTuple):
    """What signal processing says of N patches of M blocks.

    blocks: [B, N M + 1, history] the samples before each block, and after the last.
    linear: of ``blocks``.
    period: [B, N + 1] before each patch, and after the last.
    """

    blocks: Tensor
    linear: Prediction
    period: Period


class Encoded(NamedTuple):
    """A survey, and ``context`` [B, N + 1, d_model]: the recurrence's output around each patch."""

    blocks: Tensor
    linear: Prediction
    period: Period
    context: Tensor


class AudioNetwork(nn.Module):
    """Weights and their use on whole sequences; ``AudioForecaster`` adds the rows' state."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = init_linear(features(config), config.backbone.d_model, bias=True)
        self.backbone = KSSM(config.backbone)
        self.next_sample = NextSample(config)
        self.outlook = Outlook(config)

    def encode(
        self,
        samples: Tensor,
        history: Tensor,
        context: Tensor,
        lost: Tensor,
        state: State | None,
        lengths: Tensor | None = None,
    ) -> tuple[Encoded, State]:
        """Run patches [B, N patch] through the recurrence; differentiable in the weights.

        Args:
            samples: float32, every missing one filled in; N may be 0.
            history: [B, history] samples before them.
            context: [B, d_model] the recurrence's output before them.
            lost: [B, N] share of each patch's samples that were missing.
            state: of the recurrence, None = fresh.
            lengths: [B] patches of each row, None = all N.
        """
        survey = self.survey(samples, history)
        with torch.no_grad():
            tokens = self._tokens(survey, lost)
        hidden, new_state = self.backbone(self.embed(tokens), state, lengths)
        contexts = torch.cat([context.unsqueeze(1).to(hidden.dtype), hidden], 1)
        return Encoded(*survey, contexts), new_state

    @torch.no_grad()
    def survey(self, samples: Tensor, history: Tensor) -> Survey:
        """The analysis of samples [B, N patch] after ``history`` [B, history]."""
        config = self.config
        blocks = torch.cat([history, samples], 1).unfold(1, config.history, config.block)
        linear = predict_linearly(blocks, config)
        step = config.blocks
        return Survey(
            blocks, linear, find_period(blocks[:, ::step], linear.level[:, ::step], config)
        )

    def _tokens(self, survey: Survey, lost: Tensor) -> Tensor:
        """What the recurrence reads of every patch [B, N, features]."""
        step = self.config.blocks
        after = Prediction(*(entry[:, step::step] for entry in survey.linear))
        period = Period(*(entry[:, 1:] for entry in survey.period))
        before = survey.linear.level[:, :-1:step]
        return describe(survey.blocks[:, step::step], after, period, before, lost, self.config)

    def guess_next(self, encoded: Encoded, samples: Tensor) -> Guess:
        """One sample ahead, each of the samples [B, N patch] that were encoded: [B, N patch]."""
        config = self.config
        own = samples.unflatten(1, (-1, config.block))
        buffer = torch.cat([encoded.blocks[:, :-1], own], -1).unflatten(1, (-1, config.blocks))
        linear = Prediction(
            *(entry[:, :-1].unflatten(1, (-1, config.blocks)) for entry in encoded.linear)
        )
        lag, context = encoded.period.lag[:, :-1], encoded.context[:, :-1]
        guess = self.next_sample(buffer, linear, lag, context)
        return Guess(guess.mean.flatten(1), guess.scale.flatten(1))

    def look_ahead(self, window: Tensor, context: Tensor) -> Guess:
        """The samples after windows [R, history]: [R, horizon].

        ``context`` [R, d_model] is the recurrence's output for the last whole patch in the window,
        which may have begun another one.
        """
        return self.outlook(window, context)


def pad_patches(samples: Tensor, patch: int) -> Tensor:
    """Samples [B, T] with zeros after them, to whole patches."""
    return F.pad(samples, (0, -samples.shape[1] % patch))
