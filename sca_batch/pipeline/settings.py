"""Settings of batches."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchSettings"]


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Groups of work; speed and memory depend on them, records do not."""

    encoder_batch: int = 1
    caption_batch: int = 32
    mask_memory_bytes: int = 1 << 30
    decode_threads: int = 1
    decode_ahead: int = 4
    decode_ahead_bytes: int = 1 << 29
