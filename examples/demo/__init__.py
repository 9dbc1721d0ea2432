"""The demonstration: a real server, live and recorded signals, forecasts against truth."""
