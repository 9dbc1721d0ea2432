"""Sequence models that carry an explicit state; see ``base`` for the contract they share."""

from kssm.models.base import SequenceModel, State, StateSpec
from kssm.models.kssm import KSSM, KSSMConfig, nuclear_init

__all__ = ["KSSM", "KSSMConfig", "SequenceModel", "State", "StateSpec", "nuclear_init"]
