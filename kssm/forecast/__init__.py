"""The forecaster: calibrated quantile forecasts of signals, streaming or in batches."""

from kssm.forecast.api import Forecaster
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster

__all__ = ["Forecaster", "ForecasterConfig", "SignalForecaster"]
