"""Ablations of the pretraining: one lever at a time, several seeds, with noise estimates."""
