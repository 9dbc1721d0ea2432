"""Adapters to other projects' forecasting harnesses; each needs the extra of its name."""
