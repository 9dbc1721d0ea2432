"""KSSM: streaming signal forecasting with a state-space model of damped rotations."""

__version__ = "0.1.0"
