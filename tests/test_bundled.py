"""`sca-tiny` and the sample that comes with it: what a newcomer meets first."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest

from sca_batch.boxes import box_iou
from sca_batch.model.load import load_model
from sca_batch.model.names import bundled_folder
from sca_tiny.scenes.phrases import caption_subject

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "manifests"


@pytest.fixture(scope="module")
def tiny():
    return load_model("sca-tiny", device="cpu")


@pytest.fixture(scope="module")
def sample():
    lines = (MANIFESTS / "sample-regions.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["kind"] == "composed scene"]


def test_the_bundled_model_is_small_and_loads_by_the_ordinary_code(tiny):
    size = sum(p.stat().st_size for p in bundled_folder("sca-tiny").iterdir())
    assert size < 25e6
    assert tiny.config.raw["architectures"] == ["ScaTimmPyramidModel"]
    assert tiny.tokenizer is not None
    assert tiny.config.domain is not None


def test_it_names_most_of_the_given_boxes_of_scenes_it_has_not_seen(tiny, sample):
    from sca_batch.api import caption

    named, regions = 0, 0
    for row in sample:
        record = caption(MANIFESTS / row["uri"], boxes=row["boxes_xyxy"], model=tiny)
        for found, phrases in zip(record.regions, row["references"], strict=True):
            nouns = {caption_subject(phrase).split()[-1] for phrase in phrases}
            named += bool(nouns & set(caption_subject(found.caption.text).split()))
            regions += 1
    assert regions >= 20
    assert named / regions >= 0.5


def test_masks_of_given_boxes_fill_them(tiny, sample):
    from sca_batch.api import caption

    overlaps = []
    for row in sample:
        record = caption(MANIFESTS / row["uri"], boxes=row["boxes_xyxy"], model=tiny, num_beams=1)
        for found, box in zip(record.regions, row["boxes_xyxy"], strict=True):
            overlaps.append(box_iou([found.region.box_xyxy], [box])[0, 0])
    assert np.mean(overlaps) > 0.6


def test_it_finds_regions_by_itself_in_every_composed_scene(tiny, sample):
    from sca_batch.api import caption

    assert tiny.config.automatic_masks  # SAM's own settings are not for this SAM
    for row in sample:
        record = caption(MANIFESTS / row["uri"], model=tiny, num_beams=1)
        assert record.regions, row["uri"]


def test_the_sample_has_eight_scenes_two_photographs_and_no_missing_file():
    rows = [json.loads(line) for line in (MANIFESTS / "sample.jsonl").read_text().splitlines()]
    assert [row["kind"].split()[0] for row in rows] == ["composed"] * 8 + ["photograph"] * 2
    assert all((MANIFESTS / row["uri"]).is_file() for row in rows)


@pytest.mark.parametrize("module", ["sca_batch.api", "sca_batch.model.load"])
def test_the_examples_in_the_docstrings_run(module, monkeypatch):
    import importlib

    monkeypatch.chdir(ROOT)
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
