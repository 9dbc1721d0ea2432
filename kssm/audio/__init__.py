"""Sound: forecasts of the next samples, and concealment of lost ones, at constant cost."""

from kssm.audio.config import AudioConfig
from kssm.audio.forecaster import AudioForecaster
from kssm.audio.pretrained import load, save
from kssm.audio.stream import AudioStream

__all__ = ["AudioConfig", "AudioForecaster", "AudioStream", "load", "save"]
