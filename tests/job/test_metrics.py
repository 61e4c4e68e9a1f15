"""The metrics file: Prometheus text, written while a run goes on."""

from __future__ import annotations

import pytest
from jobs import small_request
from prometheus_client.parser import text_string_to_metric_families

from sca_batch.errors import ScaError
from sca_batch.job.caption import caption_corpus


def test_the_metrics_file_is_prometheus_text(shapes_images, tmp_path):
    (shapes_images / "shapes-9.png").write_bytes(b"")
    metrics = tmp_path / "sca.prom"
    outcome = caption_corpus(
        small_request(shapes_images, tmp_path / "out", metrics_file=metrics, points_per_side=4)
    )
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    }
    assert found["sca_images_total", "empty"] + found.get(("sca_images_total", "ok"), 0) == 3
    assert found["sca_failures_total", "empty_file"] == 1
    assert found["sca_regions_total",] == outcome.tally.regions
    assert found["sca_images_planned",] == 4
    assert found["sca_complete",] == 1


def test_a_metrics_file_without_a_folder_is_refused_before_anything_is_removed(
    shapes_images, tmp_path
):
    out = tmp_path / "out"
    caption_corpus(small_request(shapes_images, out, points_per_side=4))
    before = sorted(out.iterdir())
    nowhere = tmp_path / "nowhere" / "sca.prom"
    with pytest.raises(ScaError, match="--metrics-file"):
        caption_corpus(
            small_request(
                shapes_images, out, points_per_side=4, overwrite=True, metrics_file=nowhere
            )
        )
    assert sorted(out.iterdir()) == before
