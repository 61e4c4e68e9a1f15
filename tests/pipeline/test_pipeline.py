"""Images in, records out: order, failures, and that a record does not depend on its neighbours."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sca_batch.boxes import rle_area, rle_box_xyxy, rle_to_mask
from sca_batch.captioners.sca import ScaCaptioner
from sca_batch.captioners.settings import CaptionSettings
from sca_batch.errors import ScaError
from sca_batch.images.policy import ReadPolicy
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import ImageRef, Prompt
from sca_batch.regions.settings import RegionLimits, RegionSettings

ANYWHERE = ReadPolicy()


def refs_of(folder, prompts=None):
    files = sorted(folder.iterdir())
    return [
        ImageRef(i, f.name, str(f), f.name, prompts=(prompts or {}).get(i))
        for i, f in enumerate(files, 1)
    ]


@pytest.fixture
def make_pipeline(shapes_model, shapes_settings):
    def make(captions=None, regions=None, policy=ANYWHERE, **batches):
        settings = captions or CaptionSettings(num_beams=2, max_new_tokens=6)
        region_settings = RegionSettings(automatic=shapes_settings, **(regions or {}))
        batching = BatchSettings(**batches)
        captioner = ScaCaptioner(shapes_model, settings)
        return Pipeline(shapes_model, captioner, region_settings, batching, policy)

    return make


def flat(record):
    """What must be equal, and the floats that may differ in their last bits."""
    texts = [
        (c.region_id, c.caption.text, c.region.mask_rle, c.region.prompt_id) for c in record.regions
    ]
    floats = [
        v
        for c in record.regions
        for v in (*c.region.box_xyxy, c.caption.logprob, c.region.predicted_iou)
        if v is not None
    ]
    return (record.ref.key, record.status, texts), floats


def assert_equal_records(first, second):
    for a, b in zip(first, second, strict=True):
        (exact_a, floats_a), (exact_b, floats_b) = flat(a), flat(b)
        assert exact_a == exact_b
        assert np.allclose(floats_a, floats_b, atol=1e-4)


@pytest.mark.parametrize("name", ["anything", "anything-crops"])
def test_point_prompts_caption_what_the_published_demo_captions(golden, name):
    from sca_batch.model.checkpoint import load_checkpoint
    from sca_batch.regions.settings import AutomaticMaskSettings

    recorded = json.loads((golden / name / "annotations.json").read_text())
    arguments = {k: v for k, v in recorded["arguments"].items() if k != "output_mode"}
    model = load_checkpoint(golden / name)
    captioner = ScaCaptioner(model, CaptionSettings(prompt="point"))
    regions = RegionSettings(automatic=AutomaticMaskSettings(**arguments))
    pipeline = Pipeline(model, captioner, regions, BatchSettings(caption_batch=5))
    image = golden / name / "image.png"
    (record,) = pipeline.run([ImageRef(1, "image", str(image), image.name)])
    assert [c.caption.text for c in record.regions] == [
        annotation["caption"] for annotation in recorded["annotations"]
    ]


def test_records_come_in_order_whatever_fails_between_them(shapes_images, make_pipeline):
    (shapes_images / "shapes-1.png").write_bytes(b"not an image at all")
    refs = refs_of(shapes_images)
    refs.insert(2, ImageRef(9, "gone", str(shapes_images / "gone.png"), "gone.png"))
    records = list(make_pipeline().run(refs))
    assert [r.ref.key for r in records] == [ref.key for ref in refs]
    assert [r.status for r in records] == ["ok", "failed", "failed", "ok"]
    assert [r.error_code for r in records] == [None, "not_an_image", "missing", None]


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param({"caption_batch": 1}, id="captions one by one"),
        pytest.param({"caption_batch": 1, "encoder_batch": 1}, id="one by one"),
        pytest.param({"caption_batch": 3, "encoder_batch": 3}, id="by threes"),
        pytest.param({"caption_batch": 8, "encoder_batch": 8}, id="by eights"),
        pytest.param({"caption_batch": 3, "encoder_batch": 2}, id="batches across images"),
        pytest.param({"caption_batch": 1000, "encoder_batch": 3}, id="one batch for all"),
        pytest.param({"decode_threads": 3, "decode_ahead": 3}, id="threads"),
        pytest.param({"mask_memory_bytes": 1}, id="one mask at a time"),
    ],
)
def test_a_record_does_not_depend_on_how_work_is_batched(shapes_images, make_pipeline, batches):
    refs = refs_of(shapes_images)
    plain = list(make_pipeline().run(refs))
    assert sum(len(r.regions) for r in plain) > 3
    assert_equal_records(plain, list(make_pipeline(**batches).run(refs)))


def test_a_record_does_not_depend_on_its_neighbours(shapes_images, make_pipeline):
    refs = refs_of(shapes_images)
    together = list(make_pipeline(caption_batch=100).run(refs))
    alone = [next(make_pipeline().run([ref])) for ref in reversed(refs)]
    assert_equal_records(together, alone[::-1])


def test_given_boxes_are_kept_in_order_with_their_ids(shapes_images, make_pipeline):
    boxes = [(10.0, 10.0, 60.0, 50.0), (5.0, 5.0, 5.0, 30.0), (-20.0, 0.0, 400.0, 90.0)]
    prompts = tuple(Prompt(box_xyxy=box, prompt_id=f"box-{i}") for i, box in enumerate(boxes))
    (record,) = make_pipeline().run(refs_of(shapes_images, {1: prompts})[:1])
    assert [c.region.prompt_id for c in record.regions] == ["box-0", "box-1", "box-2"]
    assert [c.region.prompt_box_xyxy for c in record.regions] == boxes
    assert {c.region.prompt_type for c in record.regions} == {"box"}


def test_an_empty_list_of_given_regions_is_an_empty_record(shapes_images, make_pipeline):
    (record,) = make_pipeline().run(refs_of(shapes_images, {1: ()})[:1])
    assert (record.status, record.regions, record.width) == ("empty", (), 150)


def test_auto_proposes_where_regions_are_given_too(shapes_images, make_pipeline):
    given = {1: (Prompt(box_xyxy=(0.0, 0.0, 9.0, 9.0)),)}
    (record,) = make_pipeline(regions={"source": "auto"}).run(refs_of(shapes_images, given)[:1])
    assert {c.region.prompt_type for c in record.regions} == {"grid_point"}


def test_a_given_mask_of_another_size_fails_that_image_only(shapes_images, make_pipeline):
    from sca_batch.boxes import mask_to_rle

    wrong = Prompt(mask_rle=mask_to_rle(np.ones((7, 7), dtype=bool)))
    records = list(make_pipeline().run(refs_of(shapes_images, {2: (wrong,)})))
    assert [r.error_code for r in records] == [None, "mask_size", None]
    assert (records[1].width, records[1].height) == (90, 140)


def test_masks_boxes_and_areas_agree(shapes_images, make_pipeline):
    for record in make_pipeline().run(refs_of(shapes_images)):
        for captioned in record.regions:
            region = captioned.region
            assert region.box_xyxy == rle_box_xyxy(region.mask_rle)
            assert region.area == rle_area(region.mask_rle) == rle_to_mask(region.mask_rle).sum()


def test_improbable_captions_are_left_out_and_ids_stay_dense(shapes_images, make_pipeline):
    everything = next(make_pipeline().run(refs_of(shapes_images)[:1]))
    scores = sorted(math.exp(c.caption.logprob) for c in everything.regions)
    least = (scores[0] + scores[1]) / 2
    strict = make_pipeline(regions={"min_caption_score": least})
    fewer = next(strict.run(refs_of(shapes_images)[:1]))
    assert len(fewer.regions) == len(everything.regions) - 1
    assert [c.region_id for c in fewer.regions] == list(range(len(fewer.regions)))


def test_an_image_larger_than_allowed_fails_before_it_is_decoded(shapes_images, make_pipeline):
    pipeline = make_pipeline(policy=ReadPolicy(max_pixels=150 * 110 - 1))
    records = list(pipeline.run(refs_of(shapes_images)[:2]))
    assert [r.error_code for r in records] == ["too_large", None]


def test_several_beams_are_kept_the_best_first(shapes_images, make_pipeline):
    settings = CaptionSettings(num_beams=3, max_new_tokens=5, captions_per_region=3)
    record = next(make_pipeline(captions=settings).run(refs_of(shapes_images)[:1]))
    for captioned in record.regions:
        logprobs = [logprob for _, logprob in captioned.caption.alternatives]
        assert len(logprobs) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert captioned.caption.alternatives[0] == (
            captioned.caption.text, captioned.caption.logprob,
        )  # fmt: skip


def test_more_captions_than_beams_are_refused():
    with pytest.raises(ScaError, match="--num-beams 5"):
        CaptionSettings(num_beams=3, captions_per_region=5)


def test_exif_orientation_is_applied_before_anything_is_measured(tmp_path, make_pipeline):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90 degrees clockwise
    Image.new("RGB", (120, 80), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    (record,) = make_pipeline().run([ImageRef(1, "t", str(tmp_path / "turned.jpg"), "turned.jpg")])
    assert (record.width, record.height) == (80, 120)


def test_closing_the_generator_ends_the_decoding_threads(shapes_images, make_pipeline):
    import threading

    records = make_pipeline().run(refs_of(shapes_images))
    next(records)
    records.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_given_regions_are_kept_whatever_the_limits_say(shapes_images, make_pipeline):
    prompts = (Prompt(box_xyxy=(1.0, 1.0, 3.0, 3.0)), Prompt(box_xyxy=(0.0, 0.0, 90.0, 90.0)))
    limits = RegionLimits(min_area=0.9, max_regions=1)
    strict = make_pipeline(regions={"limits": limits, "min_caption_score": 1.0})
    (record,) = strict.run(refs_of(shapes_images, {1: prompts})[:1])
    assert len(record.regions) == 2


def test_a_strip_one_pixel_high_is_an_image_like_any_other(tmp_path, make_pipeline):
    Image.new("RGB", (3000, 1), (9, 99, 199)).save(tmp_path / "strip.png")
    (record,) = make_pipeline().run([ImageRef(1, "s", str(tmp_path / "strip.png"), "strip.png")])
    assert record.status in {"ok", "empty"}
    assert (record.width, record.height) == (3000, 1)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_that_are_not_finite_fail_the_image_and_not_the_run(
    shapes_images, shapes_folder, shapes_settings, num_beams
):
    from sca_batch.model.checkpoint import load_checkpoint

    model = load_checkpoint(shapes_folder)
    with torch.no_grad():
        model.projection.bias.fill_(math.nan)
    settings = CaptionSettings(num_beams=num_beams, max_new_tokens=3)
    pipeline = Pipeline(
        model,
        ScaCaptioner(model, settings),
        RegionSettings(automatic=shapes_settings),
        BatchSettings(),
    )
    records = list(pipeline.run(refs_of(shapes_images)))
    assert {r.error_code for r in records} == {"not_finite"}
    assert "--dtype float32" in records[0].error
