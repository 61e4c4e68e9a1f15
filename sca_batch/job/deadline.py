"""The moment at which a run must have stopped."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """A limit on time from `began` on, by the monotonic clock; None is no limit.

    One must stop as long before it as two of the slowest steps so far take.
    """

    def __init__(self, limit_s: float | None, began: float | None = None) -> None:
        now = time.monotonic()
        self._limit_s, self._began = limit_s, now if began is None else began
        self._heard_at, self._slowest_s = now, 0.0
        self.is_near = False

    def step(self) -> None:
        """Notes that an image, or a step of training, is done."""
        now = time.monotonic()
        self._slowest_s = max(self._slowest_s, now - self._heard_at)
        self._heard_at = now

    def look(self) -> bool:
        """Looks at the clock; once near it stays so."""
        if self._limit_s is not None and not self.is_near:
            left = self._limit_s - (time.monotonic() - self._began)
            self.is_near = left < 2 * self._slowest_s
        return self.is_near
