"""A session in numbers, as one JSON file that a dashboard or a cron job can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sca_batch.records import JsonObject
from sca_batch.storage.atomic import writing
from sca_batch.storage.stores import AnyPath

__all__ = ["StageTimes", "write_summary"]

# Times are counted in classes a ninth apart, so that a million of them take no more room than ten.
EDGES_S = np.geomspace(1e-5, 1e5, 261)


class StageTimes:
    """Times of each stage, over any number of images."""

    def __init__(self) -> None:
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._totals: dict[str, float] = {}

    def add(self, seconds: Mapping[str, Sequence[float]]) -> None:
        for stage, times in seconds.items():
            counts = self._counts.setdefault(stage, np.zeros(len(EDGES_S) + 1, dtype=np.int64))
            np.add.at(counts, np.searchsorted(EDGES_S, times), 1)
            self._totals[stage] = self._totals.get(stage, 0.0) + float(sum(times))

    @property
    def busy_s(self) -> float:
        """Time that workers spent in the stages that their main threads wait for."""
        return sum(total for stage, total in self._totals.items() if stage != "decode")

    def table(self) -> JsonObject:
        """Per stage: how often, seconds in all, and two percentiles, right to about 5 %."""
        return {
            stage: {
                "count": int(counts.sum()),
                "total_s": round(self._totals[stage], 3),
                "p50_s": _percentile(counts, 0.50),
                "p95_s": _percentile(counts, 0.95),
            }
            for stage, counts in self._counts.items()
        }


def _percentile(counts: npt.NDArray[np.int64], share: float) -> float:
    at = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    low, high = max(at - 1, 0), min(at, len(EDGES_S) - 1)
    return float(f"{np.sqrt(EDGES_S[low] * EDGES_S[high]):.3g}")


def write_summary(path: AnyPath, summary: JsonObject) -> None:
    """Writes OUT/summary.json."""
    with writing(path) as file:
        file.write((json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
