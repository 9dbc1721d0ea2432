"""Fine-tuning on one source after another, against the weights it started from."""
