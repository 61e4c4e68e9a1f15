from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sca_batch.boxes import rle_to_mask
from sca_batch.regions.masks import _run_lengths, back_project, encode_masks, stability_scores

# pycocotools 2.0.11 has not learned numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "size_hw", [(110, 150), (171, 96), (300, 401), (128, 128), (128, 77), (1, 100), (33, 7)]
)
def test_masks_come_back_to_the_image_as_in_segment_anything(peer, size_hw):
    low_res = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    input_hw = tuple(int(side * 128 / max(size_hw) + 0.5) for side in size_hw)
    theirs = peer.postprocess_masks(low_res[None], input_hw, size_hw)[0]

    assert torch.equal(back_project(low_res, size_hw, 128), theirs)


def masks():
    random = np.random.default_rng(0).random((6, 23, 31)) > 0.5
    random[0] = False
    random[1] = True
    random[2, 0, 0], random[3, 0, 0] = True, False
    random[4, :, 1:] = False
    return torch.from_numpy(random)


def test_encoded_masks_decode_to_themselves():
    for rle, mask in zip(encode_masks(masks()), masks(), strict=True):
        assert np.array_equal(rle_to_mask(rle), mask.numpy())


def test_run_lengths_found_on_a_device_encode_as_pycocotools_does():
    runs = _run_lengths(masks().transpose(1, 2))

    encoded = coco_mask.frPyObjects(runs, 23, 31)

    assert [r["counts"].decode() for r in encoded] == [r["counts"] for r in encode_masks(masks())]


def test_no_masks_encode_to_nothing():
    assert encode_masks(torch.zeros(0, 4, 5, dtype=torch.bool)) == []


def test_stability_is_right_for_images_wider_than_int16():
    logits = torch.full((2, 3, 70_000), 2.0)
    logits[0, :, 35_000:] = 0.5
    logits[1] = -3.0

    assert stability_scores(logits, 1.0).tolist() == [0.5, 0.0]
