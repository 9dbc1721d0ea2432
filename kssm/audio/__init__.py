"""Sound: forecasts of the next samples, and concealment of lost ones, at constant cost."""
