from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sca_batch.boxes import mask_to_rle, rle_to_mask, to_model_frame
from sca_batch.errors import ImageError
from sca_batch.records import Prompt
from sca_batch.regions.given import given_regions
from sca_batch.regions.proposal import proposal_prompts

# pycocotools 2.0.11 has not learned numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE_HW = (110, 150)

ALL_KINDS = [
    Prompt(box_xyxy=(20, 30, 90, 80), prompt_id="box"),
    Prompt(points_xy=((100, 40),), labels=(1,), prompt_id="point"),
    Prompt(points_xy=((30, 20), (90, 70), (10, 100)), labels=(1, 0, 0), prompt_id="points"),
    Prompt(box_xyxy=(5, 5, 60, 100), points_xy=((30, 50),), labels=(1,), prompt_id="box and point"),
    Prompt(box_xyxy=(70, 10, 140, 60), prompt_id="another box"),
    Prompt(points_xy=((70, 70),), labels=(1,), prompt_id="another point"),
]


@pytest.fixture
def rgb(shapes):
    return shapes(SIZE_HW, 11)


@pytest.fixture
def embedding(encode, rgb):
    return encode(rgb)


@pytest.mark.parametrize("prompt", ALL_KINDS, ids=lambda p: p.prompt_id)
def test_the_mask_is_the_best_of_the_three_that_segment_anything_predicts(
    model, peer, rgb, embedding, prompt
):
    predictor = SamPredictor(peer)
    predictor.set_image(rgb)
    masks, scores, _ = predictor.predict(
        point_coords=np.array(prompt.points_xy, dtype=float) if prompt.points_xy else None,
        point_labels=np.array(prompt.labels) if prompt.points_xy else None,
        box=None if prompt.box_xyxy is None else np.array(prompt.box_xyxy, dtype=float),
    )
    expected = masks[scores.argmax()]

    (given,) = given_regions(model, embedding, SIZE_HW, [prompt])

    region = given.region
    assert np.logical_xor(rle_to_mask(region.mask_rle), expected).sum() <= 1
    assert region.area == pytest.approx(expected.sum(), abs=1)
    assert region.predicted_iou == pytest.approx(scores.max(), abs=1e-4)
    assert region.stability_score is None
    assert region.prompt_box_xyxy == prompt.box_xyxy
    assert region.points_xy == (prompt.points_xy or None)
    assert region.labels == (prompt.labels or None)
    assert region.prompt_type == ("points" if prompt.points_xy else "box")


@pytest.mark.parametrize(("prompts_per_batch", "mask_memory_bytes"), [(64, 1 << 30), (2, 1)])
def test_order_and_ids_are_the_manifests_and_batches_do_not_matter(
    model, embedding, prompts_per_batch, mask_memory_bytes
):
    together = given_regions(
        model,
        embedding,
        SIZE_HW,
        ALL_KINDS,
        prompts_per_batch=prompts_per_batch,
        mask_memory_bytes=mask_memory_bytes,
    )

    assert [g.region.prompt_id for g in together] == [p.prompt_id for p in ALL_KINDS]
    for given, prompt in zip(together, ALL_KINDS, strict=True):
        (alone,) = given_regions(model, embedding, SIZE_HW, [prompt])
        assert given.region.mask_rle == alone.region.mask_rle
        assert given.region.box_xyxy == alone.region.box_xyxy
        assert given.region.predicted_iou == pytest.approx(alone.region.predicted_iou, abs=1e-4)
        assert given.prompt.layout == alone.prompt.layout


def test_a_given_mask_is_kept_and_prompted_with_its_box(model):
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[20:50, 30:45] = True
    mask[60, 80] = True
    rle = mask_to_rle(mask)

    (given,) = given_regions(
        model, None, SIZE_HW, [Prompt(mask_rle=rle, box_xyxy=(0, 0, 9, 9), prompt_id="m")]
    )

    assert given.region.mask_rle == rle
    assert given.region.box_xyxy == (30, 20, 81, 61)
    assert given.region.area == 451
    assert given.region.prompt_type == "mask"
    assert given.region.predicted_iou is None
    assert given.prompt.box_xyxy == tuple(to_model_frame((30, 20, 81, 61), SIZE_HW, 128))
    assert given.prompt.layout == (0, True)


def test_a_mask_of_another_size_is_named(model):
    rle = mask_to_rle(np.ones((10, 20), dtype=bool))

    with pytest.raises(ImageError, match=r"mask 0 is 10 x 20 pixels, the image 110 x 150") as bad:
        given_regions(model, None, SIZE_HW, [Prompt(mask_rle=rle)])

    assert bad.value.code == "mask_size"


@pytest.mark.parametrize(
    ("box_xyxy", "clipped"),
    [
        pytest.param((40.0, 30.0, 40.0, 30.0), (40, 30, 40, 30), id="a point"),
        pytest.param((40.0, 30.0, 40.0, 90.0), (40, 30, 40, 90), id="a line"),
        pytest.param((-20.0, -5.0, 30.0, 40.0), (0, 0, 30, 40), id="partly outside"),
        pytest.param((400.0, 300.0, 500.0, 400.0), (150, 110, 150, 110), id="outside"),
    ],
)
def test_degenerate_boxes_are_regions_too(model, embedding, box_xyxy, clipped):
    prompt = Prompt(box_xyxy=box_xyxy)

    (with_mask,) = given_regions(model, embedding, SIZE_HW, [prompt])
    (without,) = given_regions(model, None, SIZE_HW, [prompt], with_masks=False)

    assert with_mask.region.prompt_box_xyxy == without.region.prompt_box_xyxy == box_xyxy
    assert with_mask.prompt.box_xyxy == tuple(to_model_frame(box_xyxy, SIZE_HW, 128))
    assert without.region.box_xyxy == clipped
    assert without.region.area == (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
    assert without.region.mask_rle is None


@pytest.mark.parametrize(
    ("prompt", "box_xyxy"),
    [
        (Prompt(box_xyxy=(-5.0, 3.0, 9.0, 12.0)), (0, 3, 9, 12)),
        (Prompt(points_xy=((4.0, 9.0), (7.0, 2.0)), labels=(1, 1)), (4, 2, 7, 9)),
    ],
)
def test_a_region_whose_mask_is_empty_keeps_the_prompts_box(
    empty_masks, embedding, prompt, box_xyxy
):
    (given,) = given_regions(empty_masks, embedding, SIZE_HW, [prompt])

    assert given.region.area == 0
    assert not rle_to_mask(given.region.mask_rle).any()
    assert given.region.box_xyxy == box_xyxy


def test_without_masks_only_points_need_sam(model, embedding):
    given = given_regions(model, embedding, SIZE_HW, ALL_KINDS, with_masks=False)

    assert [g.region.mask_rle is not None for g in given] == [p.box_xyxy is None for p in ALL_KINDS]


def test_given_regions_are_prompted_with_what_was_given(model, embedding):
    given = given_regions(model, embedding, SIZE_HW, ALL_KINDS)

    for how in ("box", "point"):
        prompts = proposal_prompts(given, how, SIZE_HW, model.config.image_size)
        assert prompts == [g.prompt for g in given]


def test_no_prompts_are_no_regions(model, embedding):
    assert given_regions(model, embedding, SIZE_HW, []) == []


def test_a_prompt_without_labels_lies_on_the_region(model, embedding):
    (bare,) = given_regions(model, embedding, SIZE_HW, [Prompt(points_xy=((50, 50),))])
    (labelled,) = given_regions(
        model, embedding, SIZE_HW, [Prompt(points_xy=((50, 50),), labels=(1,))]
    )

    assert bare.region.mask_rle == labelled.region.mask_rle


def test_results_can_be_used_where_gradients_are_wanted(model, embedding):
    given_regions(model, embedding, SIZE_HW, ALL_KINDS[:1])

    assert torch.is_grad_enabled()
    assert not embedding.is_inference()
