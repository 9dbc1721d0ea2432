"""The runtime: many streaming sessions of one model on one device."""

from kssm.runtime.config import EngineConfig
from kssm.runtime.engine import Engine
from kssm.runtime.jobs import ForecastResult, GenerationResult, Listener, Prediction
from kssm.runtime.statistics import EngineStats

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "ForecastResult",
    "GenerationResult",
    "Listener",
    "Prediction",
]
