"""Times of stages: counted in classes, right to about five percent, whatever their number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sca_batch.job.summary import StageTimes, write_summary


def test_percentiles_are_those_of_the_times(tmp_path):
    chance = np.random.default_rng(0)
    times = chance.lognormal(-3, 1, 5000)
    stages = StageTimes()
    for part in np.array_split(times, 7):
        stages.add({"encode": part.tolist()})
    stages.add({"decode": [0.5]})
    table = stages.table()
    assert table["encode"]["count"] == 5000
    assert table["encode"]["total_s"] == pytest.approx(times.sum(), abs=1e-3)
    assert table["encode"]["p50_s"] == pytest.approx(np.percentile(times, 50), rel=0.06)
    assert table["encode"]["p95_s"] == pytest.approx(np.percentile(times, 95), rel=0.06)
    assert stages.busy_s == pytest.approx(times.sum())  # nobody waits for decoding
    write_summary(tmp_path / "summary.json", {"stages": table})
    assert json.loads((tmp_path / "summary.json").read_text())["stages"] == table
