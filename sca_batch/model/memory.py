"""Batch sizes that shrink when a device's memory does not suffice, and grow back."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Allowance", "fit", "is_out_of_memory"]

# Of "no memory", in the messages of allocators and of libraries that make their work spaces.
SPELLINGS = (
    "out of memory", "OutOfMemory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)  # fmt: skip
GROW_AFTER = 16  # batches that fitted, before twice as much is tried again

T = TypeVar("T")

log = logging.getLogger(__name__)


class Allowance:
    """The size that a batch may have: halved when memory runs out, remembered, grown back."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.size = name, most, most
        self._fitted = 0

    def shrink(self) -> bool:
        """Halves it. False when it is one already."""
        if self.size == 1:
            return False
        self.size = max(1, self.size // 2)
        self._fitted = 0
        log.warning("Out of memory: %s is %d for now.", self.name, self.size)
        return True

    def fitted(self) -> None:
        """Notes a batch that fitted."""
        self._fitted += 1
        if self._fitted >= GROW_AFTER and self.size < self.most:
            self.size = min(self.most, self.size * 2)
            self._fitted = 0


def fit(action: Callable[[int], T], allowance: Allowance) -> T | None:
    """The result of `action` for the allowed size, retried with half of it when memory runs out.

    None when not even one fits.
    """
    while True:
        try:
            result = action(allowance.size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            allowance.fitted()
            return result
        # Here, where the frames of the exception no longer hold tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not allowance.shrink():
            return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's own error, for a CPU allocator's, and for Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(spelling in text for spelling in SPELLINGS)
