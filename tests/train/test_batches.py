"""Batches by number: what is dropped from one, and what takes the place of an empty one."""

import dataclasses
import json

import numpy as np
import pytest
from caption_runs import GOLDEN, STILL
from PIL import Image

from sca_batch.manifests.references import read_captioned
from sca_batch.train.batches import RegionBatches, TokenizerFolder
from sca_batch.train.task import BatchFailure

FULL, EMPTY = [10, 10, 40, 40], [60, 20, 60, 50]  # the second has no width
NONE = {"images_without_region": 0, "images_unreadable": 0}


def batches(folder, boxes, *, missing=(), **changes):
    """A data set of one image per box; each is called by its number."""
    rows = []
    for i, box in enumerate(boxes):
        if i not in missing:
            Image.new("RGB", (90, 80), (20 * i, 90, 9)).save(folder / f"{i}.png")
        rows.append({"uri": f"{i}.png", "boxes_xyxy": [box], "references": [[f"number {i}"]]})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RegionBatches(
        dataclasses.replace(STILL, **changes),
        [read_captioned(path)],
        128,
        TokenizerFolder(GOLDEN / "anything", eos_token_id=0),
    )


def whole_epoch(data):
    return [data[m] for m in range(len(data.order) // data.recipe.images_per_device)]


def test_an_image_without_a_region_is_dropped_from_its_batch_and_counted(tmp_path):
    data = batches(tmp_path, [FULL, EMPTY, FULL, FULL], images_per_device=4)

    [batch] = whole_epoch(data)

    assert sorted(batch.keys) == ["0.png", "2.png", "3.png"]
    assert batch.counts == {"images": 3, "regions": 3} | NONE | {"images_without_region": 1}


def test_a_batch_that_would_be_empty_gets_one_image_drawn_from_all(tmp_path):
    data = batches(tmp_path, [FULL, EMPTY, FULL], images_per_device=1)

    epoch = whole_epoch(data)

    assert all(batch.counts["images"] == batch.counts["regions"] == 1 for batch in epoch)
    dropped = [batch.counts["images_without_region"] for batch in epoch]
    assert sorted(dropped)[:2] == [0, 0]
    assert max(dropped) >= 1
    assert {key for batch in epoch for key in batch.keys} == {"0.png", "2.png"}
    # A function of its number alone, whatever was asked for before.
    again = batches(tmp_path, [FULL, EMPTY, FULL], images_per_device=1)
    number = int(np.argmax(dropped))
    assert again[number].keys == epoch[number].keys


def test_an_image_that_cannot_be_read_is_dropped_where_that_was_asked_for(tmp_path):
    boxes = [FULL, FULL, FULL]
    data = batches(tmp_path, boxes, missing=[1], images_per_device=3, skip_bad_images=True)

    [batch] = whole_epoch(data)

    assert sorted(batch.keys) == ["0.png", "2.png"]
    assert batch.counts["images_unreadable"] == 1

    strict = batches(tmp_path, boxes, missing=[1], images_per_device=3)
    [failure] = whole_epoch(strict)
    assert isinstance(failure, BatchFailure)
    assert failure.message.startswith("1.png: no file")
    assert "skip_bad_images" in failure.message


@pytest.mark.parametrize("images_per_device", [1, 2])
def test_a_manifest_without_anything_to_train_on_is_told(tmp_path, images_per_device):
    data = batches(tmp_path, [EMPTY, EMPTY], images_per_device=images_per_device)

    failure = data[0]

    assert isinstance(failure, BatchFailure)
    assert "50 images in a row gave no region" in failure.message
