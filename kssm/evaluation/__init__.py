"""How good forecasts are: tasks, scores, calibration, and forecasting them both ways."""
