from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from sca_batch.boxes import mask_to_rle, rle_area, rle_box_xyxy, rle_to_mask
from sca_batch.errors import ScaError
from sca_batch.images.decode import read_image
from sca_batch.images.pixels import preprocess
from sca_batch.model.checkpoint import load_checkpoint
from sca_batch.regions import fused
from sca_batch.regions.automatic import propose_regions
from sca_batch.regions.proposal import batches_by_layout, prompt_tensors, proposal_prompts
from sca_batch.regions.settings import AutomaticMaskSettings

# pycocotools 2.0.11 has not learned numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# The small models are less sure of themselves than SAM.
LENIENT = {
    "points_per_side": 8,
    "points_per_batch": 16,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.7,
    "stability_score_offset": 0.5,
}


def mask_iou(first, second):
    union = np.logical_or(first, second).sum()
    return np.logical_and(first, second).sum() / union if union else 1.0


def exclusive(box_xywh_inclusive):
    """segment_anything's x, y, x_max - x_min, y_max - y_min as our box."""
    x, y, w, h = box_xywh_inclusive
    return (x, y, x + w + 1, y + h + 1)


def same_regions(ours, theirs):
    """Asserts that both lists are equal; what only a borderline value decided is listed instead."""
    theirs = list(theirs)
    matched, borderline = [], []
    for proposal in ours:
        region = proposal.region
        mask = rle_to_mask(region.mask_rle)
        match = next(
            (
                i
                for i, their in enumerate(theirs)
                if i not in matched
                and np.allclose(their["point_coords"], region.points_xy)
                and tuple(their["crop_box"]) == region.crop_box_xywh
                and mask_iou(their["segmentation"], mask) >= 0.99
            ),
            None,
        )
        if match is None:
            borderline.append(("ours", region.predicted_iou, region.stability_score))
            continue
        matched.append(match)
        their = theirs[match]
        assert region.predicted_iou == pytest.approx(their["predicted_iou"], abs=1e-4)
        assert region.stability_score == pytest.approx(their["stability_score"], abs=1e-4)
        if np.array_equal(their["segmentation"], mask):
            assert region.box_xyxy == exclusive(their["bbox"])
            assert region.area == their["area"]
    borderline += [
        ("theirs", their["predicted_iou"], their["stability_score"])
        for i, their in enumerate(theirs)
        if i not in matched
    ]
    print(f"{len(matched)} matched, {len(borderline)} borderline: {borderline}")
    assert matched == sorted(matched)
    for side, predicted_iou, stability in borderline:
        near = min(abs(predicted_iou - 0.5), abs(stability - 0.7))
        assert near < 1e-4, f"only in {side}: {predicted_iou}, {stability}"


@pytest.mark.parametrize(
    ("size_hw", "seed"),
    [
        pytest.param((110, 150), 7, id="landscape"),
        pytest.param((171, 96), 4, id="portrait"),
        pytest.param((600, 420), 4, id="larger than the model's frame"),
        pytest.param((128, 128), 1, id="the model's frame"),
        pytest.param((40, 190), 6, id="flat"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole image"),
        pytest.param({"crop_n_layers": 1}, id="one crop layer"),
        pytest.param(
            {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.5},
            id="two crop layers",
        ),
        pytest.param({"min_mask_region_area": 60}, id="small parts removed"),
        pytest.param(
            {"crop_n_layers": 1, "min_mask_region_area": 60, "crop_overlap_ratio": 0.2},
            id="crops with small parts removed",
        ),
        pytest.param({"box_nms_thresh": 0.3, "points_per_batch": 7}, id="strict NMS, odd batches"),
        pytest.param({"pred_iou_thresh": 0.0, "box_nms_thresh": 0.9}, id="no IoU filter"),
    ],
)
def test_regions_equal_segment_anythings(model, peer, shapes, size_hw, seed, options):
    rgb = shapes(size_hw, seed)
    arguments = {**LENIENT, **options}
    theirs = SamAutomaticMaskGenerator(peer, **arguments).generate(rgb)

    ours = propose_regions(model, rgb, None, AutomaticMaskSettings(**arguments))

    assert ours
    same_regions(ours, theirs)


def test_the_comparison_covers_crops_and_removed_parts(model, shapes):
    rgb = shapes((171, 96), 4)
    plain = propose_regions(model, rgb, None, AutomaticMaskSettings(**LENIENT))
    cropped = propose_regions(model, rgb, None, AutomaticMaskSettings(**LENIENT, crop_n_layers=1))
    cleaned = propose_regions(
        model, rgb, None, AutomaticMaskSettings(**LENIENT, min_mask_region_area=60)
    )

    assert {p.region.crop_box_xywh for p in plain} == {(0.0, 0.0, 96.0, 171.0)}
    assert len({p.region.crop_box_xywh for p in cropped}) > 1
    before = [p.region.mask_rle["counts"] for p in plain]
    assert any(p.region.mask_rle["counts"] not in before for p in cleaned)


def test_regions_and_point_captions_equal_the_recorded_ones(golden):
    model = load_checkpoint(golden)
    rgb = read_image(str(golden / "image.png")).rgb
    recorded = json.loads((golden / "annotations.json").read_text(encoding="utf-8"))
    arguments = {k: v for k, v in recorded["arguments"].items() if k != "output_mode"}
    size_hw, image_size = rgb.shape[:2], model.config.image_size
    with torch.no_grad():
        embedding = model.encode_image(torch.from_numpy(preprocess(rgb, image_size))[None])

        proposals = propose_regions(
            model, rgb, embedding, AutomaticMaskSettings(**arguments), keep_crop_embeddings=True
        )
        prompts = proposal_prompts(proposals, "point", size_hw, image_size)
        captions = [caption(model, embedding, prompt) for prompt in prompts]

    assert len(proposals) == len(recorded["annotations"])
    for proposal, text, expected in zip(proposals, captions, recorded["annotations"], strict=True):
        region = proposal.region
        ours, theirs = rle_to_mask(region.mask_rle), rle_to_mask(expected["segmentation"])
        assert np.logical_xor(ours, theirs).sum() <= 1
        assert region.box_xyxy == pytest.approx(exclusive(expected["bbox"]), abs=1)
        assert region.area == pytest.approx(expected["area"], abs=1)
        assert region.predicted_iou == pytest.approx(expected["predicted_iou"], abs=1e-5)
        assert region.stability_score == pytest.approx(expected["stability_score"], abs=1e-5)
        assert np.allclose(region.points_xy, expected["point_coords"])
        assert region.crop_box_xywh == tuple(expected["crop_box"])
        assert text == expected["caption"]


def caption(model, embedding, prompt):
    own = embedding if prompt.crop_embedding is None else prompt.crop_embedding
    answer = model.region_queries(own, **prompt_tensors([prompt], model.device))
    best = model.generate(answer.queries, num_beams=3, max_new_tokens=19)[0][0][0]
    return model.tokenizer.decode(best.ids)


def test_a_point_prompt_in_a_crop_is_that_of_the_crop_as_an_image_of_its_own(model, encode, shapes):
    rgb = shapes((171, 96), 4)
    settings = AutomaticMaskSettings(**LENIENT, crop_n_layers=1)
    proposals = propose_regions(model, rgb, None, settings, keep_crop_embeddings=True)
    prompts = proposal_prompts(proposals, "point", rgb.shape[:2], model.config.image_size)

    in_crops = 0
    for proposal, prompt in zip(proposals, prompts, strict=True):
        x, y, w, h = (int(v) for v in proposal.region.crop_box_xywh)
        if (w, h) == (96, 171):
            assert prompt.crop_embedding is None
            continue
        in_crops += 1
        assert torch.equal(prompt.crop_embedding, encode(rgb[y : y + h, x : x + w]))
        ((point_x, point_y),) = proposal.region.points_xy
        scale = model.config.image_size / max(w, h)
        assert prompt.points_xy[0] == pytest.approx(
            ((point_x - x) * round(w * scale) / w, (point_y - y) * round(h * scale) / h)
        )
    assert in_crops


def test_the_masks_of_one_grid_point_share_its_prompt(model, shapes):
    proposals = propose_regions(
        model, shapes((110, 150), 7), None, AutomaticMaskSettings(**LENIENT)
    )

    prompt_of = {p.region.points_xy: p.prompt for p in proposals}
    assert len(prompt_of) < len(proposals)
    assert all(p.prompt is prompt_of[p.region.points_xy] for p in proposals)


def test_crop_embeddings_are_let_go_when_nobody_asks_for_them(model, shapes):
    settings = AutomaticMaskSettings(**LENIENT, crop_n_layers=1)

    proposals = propose_regions(model, shapes((171, 96), 4), None, settings)

    assert all(p.prompt.crop_embedding is None for p in proposals)


def test_a_box_prompt_is_the_regions_own_box_on_the_whole_image(model, shapes):
    rgb = shapes((256, 192), 6)
    settings = AutomaticMaskSettings(**LENIENT, crop_n_layers=1)
    proposals = propose_regions(model, rgb, None, settings, keep_crop_embeddings=True)

    prompts = proposal_prompts(proposals, "box", (256, 192), model.config.image_size)

    for proposal, prompt in zip(proposals, prompts, strict=True):
        assert prompt.box_xyxy == pytest.approx([v / 2 for v in proposal.region.box_xyxy])
        assert prompt.points_xy == ()
        assert prompt.crop_embedding is None
    assert list(batches_by_layout(prompts, 1000)) == [list(range(len(prompts)))]


def test_boxes_and_areas_are_those_of_the_mask(model, shapes):
    for proposal in propose_regions(
        model, shapes((171, 96), 4), None, AutomaticMaskSettings(**LENIENT, crop_n_layers=1)
    ):
        region = proposal.region
        rows, columns = np.nonzero(rle_to_mask(region.mask_rle))
        assert region.box_xyxy == (
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        )
        assert region.box_xyxy == rle_box_xyxy(region.mask_rle)
        assert region.area == rle_area(region.mask_rle) == len(rows)
        assert region.prompt_type == "grid_point"


@pytest.mark.parametrize("mask_memory_bytes", [1, 400_000])
def test_little_memory_for_masks_gives_the_same_regions(model, shapes, mask_memory_bytes):
    rgb = shapes((110, 150), 7)
    settings = AutomaticMaskSettings(**LENIENT, crop_n_layers=1)

    plenty = propose_regions(model, rgb, None, settings)
    little = propose_regions(model, rgb, None, settings, mask_memory_bytes=mask_memory_bytes)

    equal(plenty, little)


def test_points_per_batch_does_not_change_the_regions(model, shapes):
    rgb = shapes((110, 150), 7)
    alone = propose_regions(
        model, rgb, None, AutomaticMaskSettings(**{**LENIENT, "points_per_batch": 1})
    )
    together = propose_regions(
        model, rgb, None, AutomaticMaskSettings(**{**LENIENT, "points_per_batch": 1000})
    )

    equal(alone, together)


def equal(first, second):
    assert first
    for one, other in zip(first, second, strict=True):
        assert one.region.mask_rle == other.region.mask_rle
        assert one.region.points_xy == other.region.points_xy
        assert one.region.predicted_iou == pytest.approx(other.region.predicted_iou, abs=1e-4)
        assert one.region.stability_score == pytest.approx(other.region.stability_score, abs=1e-4)


@pytest.mark.parametrize(
    ("num_batches", "expected"), [(0, []), (1, [(0, 1)]), (3, [(0, 2), (1, 3), (2, 3)])]
)
def test_running_ahead_starts_the_next_batch_before_a_batch_is_read(num_batches, expected):
    started = []

    def batches():
        for i in range(num_batches):
            started.append(i)
            yield i

    assert [(i, len(started)) for i in fused.one_ahead(batches())] == expected


def test_a_cpu_is_given_as_many_points_at_a_time_as_its_caches_hold(
    model, encode, shapes, monkeypatch
):
    settings = AutomaticMaskSettings(**LENIENT)
    rgb = shapes((96, 128), 3)
    embedding = encode(rgb)
    expected = propose_regions(model, rgb, embedding, settings)
    sizes = []
    fuse = model.fuse_prompts

    def counted(*args, **prompts):
        sizes.append(len(prompts["points_RP2"]))
        return fuse(*args, **prompts)

    monkeypatch.setattr(model, "fuse_prompts", counted)
    bytes_of_point = 4 * model.config.grid_size**2 * model.config.width
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(fused, "_CACHE_BYTES", 3 * bytes_of_point + 1)
    equal(propose_regions(model, rgb, embedding, settings), expected)
    assert set(sizes) == {3, 64 % 3}
    assert sum(sizes) == 64


@pytest.mark.parametrize(("crop_n_layers", "expected"), [(0, 0), (1, 4)])
def test_a_given_embedding_is_used_and_each_crop_encoded_once(
    model, encode, shapes, crop_n_layers, expected
):
    rgb = shapes((110, 150), 7)
    embedding = encode(rgb)
    settings = AutomaticMaskSettings(**LENIENT, crop_n_layers=crop_n_layers)
    with counted_rows(model.vision_encoder) as rows:
        given = propose_regions(model, rgb, embedding, settings)

    assert sum(rows) == expected
    equal(given, propose_regions(model, rgb, None, settings))


def test_only_prompts_with_a_mask_above_the_iou_threshold_are_upscaled(model, encode, shapes):
    rgb = shapes((110, 150), 7)
    settings = AutomaticMaskSettings(
        **{**LENIENT, "pred_iou_thresh": 0.6, "stability_score_thresh": 0, "box_nms_thresh": 1.0}
    )
    with counted_rows(model.mask_decoder.upscale_conv1) as rows:
        proposals = propose_regions(model, rgb, encode(rgb), settings)

    assert sum(rows) == len({p.region.points_xy for p in proposals})
    assert 0 < sum(rows) < settings.points_per_side**2


class counted_rows:
    """Batch sizes that pass through a module."""

    def __init__(self, module):
        self.module, self.rows = module, []

    def __enter__(self):
        self.hook = self.module.register_forward_pre_hook(
            lambda module, inputs: self.rows.append(len(inputs[0]))
        )
        return self.rows

    def __exit__(self, *exception):
        self.hook.remove()


def test_an_image_without_good_regions_has_none(model, shapes):
    settings = AutomaticMaskSettings(
        points_per_side=4, pred_iou_thresh=5.0, crop_n_layers=1, min_mask_region_area=10
    )

    assert propose_regions(model, shapes((110, 150), 7), None, settings) == []


@pytest.mark.parametrize("size_hw", [(3, 250), (5, 5), (1, 100), (200, 2)])
def test_images_too_thin_for_their_crops_are_searched_all_the_same(model, shapes, size_hw):
    settings = AutomaticMaskSettings(
        **{**LENIENT, "pred_iou_thresh": 0, "stability_score_thresh": 0}, crop_n_layers=3
    )

    proposals = propose_regions(model, shapes(size_hw, 1), None, settings)

    assert {tuple(p.region.mask_rle["size"]) for p in proposals} == {size_hw}


def test_masks_that_are_empty_survive_only_without_a_stability_threshold(empty_masks, shapes):
    lenient = {**LENIENT, "pred_iou_thresh": 0, "points_per_side": 2, "crop_n_layers": 1}
    rgb = shapes((64, 80), 1)
    unstable = AutomaticMaskSettings(**{**lenient, "stability_score_thresh": 0})

    kept = propose_regions(empty_masks, rgb, None, unstable)

    assert kept
    assert {(p.region.area, p.region.box_xyxy) for p in kept} == {(0, (0, 0, 0, 0))}
    assert {p.region.stability_score for p in kept} == {0}
    assert propose_regions(empty_masks, rgb, None, AutomaticMaskSettings(**lenient)) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_crops_are_preprocessed_as_in_segment_anything(peer, model, shapes, seed):
    from segment_anything.utils.transforms import ResizeLongestSide

    crop = shapes((201, 333), seed)[13:160, 55:300]
    image_size = model.config.image_size
    resized = ResizeLongestSide(image_size).apply_image(crop)
    theirs = peer.preprocess(torch.from_numpy(resized).permute(2, 0, 1).float())

    assert np.abs(preprocess(crop, image_size) - theirs.numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "--points-per-side is 0; expected a whole number of at least 1"),
        ({"points_per_batch": 0.5}, "--points-per-batch is 0.5"),
        ({"crop_n_layers": -1}, "--crop-n-layers is -1"),
        ({"crop_n_points_downscale_factor": 0}, "--crop-n-points-downscale-factor is 0"),
        ({"min_mask_region_area": -3}, "--min-mask-region-area is -3"),
        ({"pred_iou_thresh": float("nan")}, "--pred-iou-thresh is nan; expected a finite number"),
        ({"stability_score_offset": -1.0}, "--stability-score-offset is -1.0"),
        ({"box_nms_thresh": 1.5}, "--box-nms-thresh is 1.5; expected an IoU between 0 and 1"),
        ({"crop_nms_thresh": -0.1}, "--crop-nms-thresh is -0.1"),
        ({"crop_overlap_ratio": 1.0}, "--crop-overlap-ratio is 1.0"),
        (
            {"points_per_side": 8, "crop_n_layers": 2, "crop_n_points_downscale_factor": 4},
            "--points-per-side 8 leaves no points in crop layer 2",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(ScaError) as refused:
        AutomaticMaskSettings(**options)

    assert message in str(refused.value)


def test_defaults_are_sams():
    import inspect

    theirs = inspect.signature(SamAutomaticMaskGenerator).parameters
    defaults = AutomaticMaskSettings()
    for name in AutomaticMaskSettings.__dataclass_fields__:
        assert getattr(defaults, name) == theirs[name].default, name


def test_a_region_record_survives_its_own_mask(model, shapes):
    for proposal in propose_regions(
        model, shapes((110, 150), 7), None, AutomaticMaskSettings(**LENIENT)
    ):
        assert mask_to_rle(rle_to_mask(proposal.region.mask_rle)) == proposal.region.mask_rle
