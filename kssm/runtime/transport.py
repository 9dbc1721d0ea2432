"""Arrays between host and device, without waiting until results are needed, and then once.

On a GPU everything goes through pinned memory, so that neither direction stops the host. A
download is complete when the stream has been waited for; one wait serves all that were queued.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor


class Pending(NamedTuple):
    """A host tensor that the device still writes to; ``number`` counts the downloads."""

    host: Tensor
    number: int


class Transport:
    """One thread's traffic with one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pinned = device.type == "cuda"
        self.waits = 0
        self._queued = 0
        self._arrived = 0

    def upload(self, array: NDArray[Any]) -> Tensor:
        """A copy of the array on the device, for work queued after this call."""
        tensor = torch.from_numpy(array)
        if not self.pinned:
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def download(self, tensor: Tensor) -> Pending:
        """Queue a copy to the host."""
        if not self.pinned:
            return Pending(tensor, 0)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return self.expect(host.copy_(tensor, non_blocking=True))

    def expect(self, host: Tensor) -> Pending:
        """As ``download`` for pinned memory that work queued before this call writes to."""
        self._queued += 1
        return Pending(host, self._queued)

    def fetch(self, pending: Pending) -> NDArray[Any]:
        """The downloaded values; waits for the device unless that happened since the download."""
        if pending.number > self._arrived:
            torch.cuda.current_stream(self.device).synchronize()
            self.waits += 1
            self._arrived = self._queued
        return pending.host.numpy()
