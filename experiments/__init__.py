"""What was trained, tried and measured: one folder an experiment."""
