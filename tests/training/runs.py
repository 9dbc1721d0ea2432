"""A run of a few seconds, for tests of what is around the training."""

from __future__ import annotations

_TINY = """
[model]
head_horizon = 8
head_hidden = 16
[model.backbone]
d_model = 16
n_layers = 1
d_inner = 16
d_mlp = 16
rank = 4
group_size = 16
[data]
rows = 4
length = 64
short_length = 32
bulk_samples = 512
[run]
steps = {steps}
compile = false
"""


def tiny_run(steps: int) -> str:
    """The TOML configuration of a tiny model on tiny data."""
    return _TINY.format(steps=steps)
