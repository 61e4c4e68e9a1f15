"""Boxes and masks change format and frame without losing anything."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sca_batch.boxes import (
    box_iou,
    clip_xyxy,
    is_box,
    mask_to_rle,
    resized_size,
    rle_area,
    rle_box_xyxy,
    rle_to_mask,
    to_model_frame,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

# pycocotools 2.0.11 has not learned numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "box_xyxy",
    [
        pytest.param([10, 20, 30, 60], id="ordinary"),
        pytest.param([0, 0, 1, 1], id="one pixel"),
        pytest.param([-5, 4, 5, 4], id="off the left edge, no height"),
        pytest.param([0.25, 0.5, 7.75, 9.125], id="fractions"),
    ],
)
def test_a_box_survives_the_trip_to_coco_and_back(box_xyxy):
    assert xywh_to_xyxy(xyxy_to_xywh([box_xyxy])).tolist() == [box_xyxy]


def test_boxes_of_any_leading_shape_are_converted():
    boxes = np.random.default_rng(0).random((2, 3, 4))
    assert xyxy_to_xywh(boxes).shape == (2, 3, 4)
    assert xywh_to_xyxy(np.empty((0, 4))).shape == (0, 4)


def test_clipping_keeps_what_is_inside_and_flattens_what_is_outside():
    boxes = [[-10, -20, 50, 30], [5, 6, 7, 8], [200, 10, 300, 20], [90, 90, 120, 45]]
    assert clip_xyxy(boxes, (40, 100)).tolist() == [
        [0, 0, 50, 30],
        [5, 6, 7, 8],
        [100, 10, 100, 20],
        [90, 40, 100, 40],
    ]


def test_iou_of_every_pair():
    first = [[0, 0, 10, 10], [0, 0, 5, 10], [3, 3, 3, 9]]
    second = [[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 30, 30]]
    expected = [[1, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]
    assert box_iou(first, second) == pytest.approx(np.array(expected))
    assert box_iou([], second).shape == (0, 3)


def test_iou_of_two_empty_boxes_is_0_and_not_a_warning():
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]


def test_iou_of_masks_filling_their_boxes_agrees_with_pycocotools():
    random = np.random.default_rng(1)
    corner = random.integers(0, 20, (12, 2))
    boxes = np.concatenate([corner, corner + random.integers(1, 20, (12, 2))], axis=1)
    xywh = xyxy_to_xywh(boxes)
    theirs = coco_mask.iou(xywh, xywh, [0] * 12)
    assert box_iou(boxes, boxes) == pytest.approx(theirs)


@pytest.mark.parametrize("size_hw", [(480, 640), (333, 500), (100, 37), (1, 1000), (3000, 4001)])
def test_the_corner_of_an_image_becomes_the_corner_of_its_resized_self(size_hw):
    height, width = size_hw
    new_h, new_w = resized_size(size_hw, 1024)
    assert max(new_h, new_w) == 1024
    framed = to_model_frame([[0, 0, width, height]], size_hw, 1024)
    assert framed == pytest.approx(np.array([[0, 0, new_w, new_h]]))
    assert framed.dtype == np.float64
    points = to_model_frame([[[width, height]]], size_hw, 1024)
    assert points == pytest.approx(np.array([[[new_w, new_h]]]))


def test_a_frame_does_not_clip():
    assert to_model_frame([[-10, 0, 90, 50]], (50, 50), 100).tolist() == [[-20, 0, 180, 100]]


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.zeros((5, 7), dtype=bool), id="nothing"),
        pytest.param(np.ones((5, 7), dtype=bool), id="everything"),
        pytest.param(np.eye(9, dtype=bool), id="diagonal"),
        pytest.param(np.random.default_rng(2).random((31, 17)) > 0.6, id="noise"),
    ],
)
def test_a_mask_survives_run_lengths(mask):
    rle = mask_to_rle(mask)
    assert rle["size"] == list(mask.shape)
    assert isinstance(rle["counts"], str)
    assert np.array_equal(rle_to_mask(rle), mask)
    assert rle_area(rle) == mask.sum()


def test_the_box_of_a_mask_ends_one_past_its_last_pixel():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 7:23] = True
    assert rle_box_xyxy(mask_to_rle(mask)) == (7, 4, 23, 9)
    assert rle_box_xyxy(mask_to_rle(np.zeros((3, 4), dtype=bool))) == (0, 0, 0, 0)


def test_run_lengths_with_bytes_are_read_too():
    mask = np.eye(4, dtype=bool)
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(rle_to_mask(rle), mask)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4], True),
        ([1.5, 2, 3, 2], True),
        ([5, 5, 1, 1], True),
        ([1, 2, 3], False),
        ([1, 2, 3, math.nan], False),
        ([1, 2, 3, math.inf], False),
        ([1, 2, 3, "4"], False),
        ([1, 2, 3, None], False),
        ([True, 2, 3, 4], False),
    ],
)
def test_four_finite_numbers_are_a_box(values, expected):
    assert is_box(values) is expected
