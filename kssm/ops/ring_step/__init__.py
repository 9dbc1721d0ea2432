"""The Transformer's step on a GPU: rotary position, ring of remembered tokens and attention."""

from kssm.ops.ring_step.kernel import ring_step_triton_

__all__ = ["ring_step_triton_"]
