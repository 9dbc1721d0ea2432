"""Pretraining: synthetic and real series, the loss, the loop and the evaluation."""
