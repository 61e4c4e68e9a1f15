"""Regions to tensors, against recordings of the published data pipeline and its draws."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from sca_batch.images.pixels import preprocess
from sca_batch.manifests.references import CaptionedImage
from sca_batch.model.tokenizer import read_tokenizer
from sca_batch.train.samples import Draws, collate, draw, flip, inference_sample, training_sample

SIZE = 128


@pytest.fixture(scope="module")
def recorded(golden):
    return golden / "data-pipeline"


@pytest.fixture(scope="module")
def tokenizer(recorded):
    return read_tokenizer(recorded, eos_token_id=0)


@pytest.fixture(scope="module")
def pictures(recorded):
    """The two recorded samples with their pixels and region ids."""
    found = []
    for i, sample in enumerate(json.loads((recorded / "samples.json").read_text())["samples"]):
        regions = sample["regions"]
        corners = [(r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"]) for r in regions]
        image = CaptionedImage(
            key=str(sample["image_id"]),
            uri="",
            boxes_xyxy=np.array(corners, np.float64),
            phrases=tuple(tuple(r["phrases"]) for r in regions),
            task=sample["task_type"],
        )
        rgb = np.asarray(Image.open(recorded / f"image{i}.png").convert("RGB"))
        found.append((image, rgb, [r["region_id"] for r in regions]))
    return found


def train(picture, seed=0, **options):
    settings = {"draws": None, "flip_chance": 0.5, "with_jitter": False, "most_regions": 16}
    image, rgb, _ = picture
    rng = np.random.default_rng(seed)
    return training_sample(image, rgb, rng, size=SIZE, **(settings | options))


def assert_captions(batch, recorded, count):
    ids, attention = (recorded[n].reshape(count, -1) for n in ("input_ids", "attention_mask"))
    np.testing.assert_array_equal(batch.attention_RL, attention)
    np.testing.assert_array_equal(batch.ids_RL[attention == 1], ids[attention == 1])
    labels = batch.ids_RL.masked_fill(batch.attention_RL == 0, -100)
    np.testing.assert_array_equal(labels, recorded["labels"].reshape(count, -1)[:, 1:])


@pytest.mark.parametrize("i", [0, 1])
def test_inference_keeps_every_region_in_order(recorded, pictures, tokenizer, i):
    image, rgb, region_ids = pictures[i]
    theirs = load_file(recorded / f"inference{i}.safetensors")

    batch = collate([inference_sample(image, rgb, size=SIZE)], tokenizer)

    np.testing.assert_allclose(batch.pixels_B3SS, theirs["pixel_values"], atol=1e-6)
    assert batch.boxes_R4.dtype == torch.float64
    np.testing.assert_allclose(batch.boxes_R4, theirs["input_boxes"][0], rtol=0, atol=1e-9)
    assert theirs["metadata_region_id"].flatten().tolist() == region_ids
    assert_captions(batch, theirs, len(region_ids))
    assert set(batch.tasks) == {image.task}


def test_a_training_batch_without_augmentation_is_the_recorded_one(recorded, pictures, tokenizer):
    theirs = load_file(recorded / "train_noaug.safetensors")
    samples = []
    for picture, drawn in zip(pictures, theirs["metadata_region_id"], strict=True):
        image, rgb, region_ids = picture
        sample = train(picture)
        usable = {region_ids[k] for k in sample.region_N}
        assert set(drawn.tolist()) <= usable
        assert len(usable) == sum(box[2] > box[0] for box in image.boxes_xyxy)  # none is empty
        order = [region_ids.index(r) for r in drawn]
        chosen = CaptionedImage(
            image.key, "", image.boxes_xyxy[order], tuple(image.phrases[k] for k in order),
            image.task,
        )  # fmt: skip
        samples.append(inference_sample(chosen, rgb, size=SIZE))

    batch = collate(samples, tokenizer)

    np.testing.assert_allclose(batch.pixels_B3SS, theirs["pixel_values"], atol=1e-6)
    boxes = theirs["input_boxes"].reshape(-1, 4)
    np.testing.assert_allclose(batch.boxes_R4, boxes, rtol=0, atol=1e-9)
    assert_captions(batch, theirs, 8)
    assert batch.tasks == ("caption",) * 4 + ("recognition",) * 4


@pytest.mark.parametrize("k", [0, 1, 2])
def test_flip_jitter_and_crop_are_those_of_the_recorded_draws(recorded, pictures, k):
    info = json.loads((recorded / "info.json").read_text())[f"lsj{k}"]
    theirs = load_file(recorded / f"lsj{k}.safetensors")
    picture = pictures[info["image"]]
    region_ids = picture[2]

    draws = Draws(*info["uniform_draws_flip_scale_cropoffset"])
    sample = train(picture, draws=draws, with_jitter=True)

    augmented = np.asarray(Image.open(recorded / f"lsj{k}.png").convert("RGB"))
    np.testing.assert_array_equal(sample.pixels_3SS, preprocess(augmented, SIZE))
    np.testing.assert_allclose(sample.pixels_3SS, theirs["pixel_values"][0], atol=1e-6)
    ours = {region_ids[r]: box for r, box in zip(sample.region_N, sample.boxes_N4, strict=True)}
    drawn = theirs["metadata_region_id"].tolist()
    assert set(drawn) <= ours.keys()
    assert len(drawn) == min(len(ours), 6)  # the recording keeps six regions at most
    for region, box in zip(drawn, theirs["input_boxes"], strict=True):
        np.testing.assert_array_equal(ours[region], box)


def test_draws_come_in_the_order_flip_scale_crop():
    one, two = np.random.default_rng(3), np.random.default_rng(3)

    assert draw(one, (0.1, 2.0)) == Draws(two.uniform(), two.uniform(0.1, 2.0), two.uniform())


def test_two_flips_are_none(pictures):
    image, rgb, _ = pictures[0]

    again, boxes = flip(*flip(rgb, image.boxes_xyxy))

    np.testing.assert_array_equal(again, rgb)
    np.testing.assert_array_equal(boxes, image.boxes_xyxy)


def test_regions_are_drawn_without_repetition_and_phrases_at_random():
    image = CaptionedImage(
        "a", "", np.array([[i, 0, i + 9, 9] for i in range(40)], float), (("x", "y", "z"),) * 40
    )
    rgb = np.zeros((64, 64, 3), np.uint8)
    samples = [train((image, rgb, None), seed=seed) for seed in range(3)]

    assert all(len(set(s.region_N.tolist())) == 16 for s in samples)
    assert samples[0].region_N.tolist() != samples[1].region_N.tolist()
    assert {text for s in samples for text in s.phrases} == {"x", "y", "z"}


def test_an_image_whose_regions_are_all_outside_the_crop_gives_no_sample():
    image = CaptionedImage("a", "", np.array([[50.0, 50.0, 64.0, 64.0]]), (("x",),))
    rgb = np.zeros((64, 64, 3), np.uint8)
    draws = Draws(0.9, 2.0, 0.0)

    assert train((image, rgb, None), draws=draws, with_jitter=True) is None


def test_a_batch_is_cut_to_the_smallest_number_of_regions(pictures, tokenizer):
    samples = [train(pictures[0], most_regions=3), train(pictures[1], most_regions=5)]

    batch = collate(samples, tokenizer)

    assert batch.image_R.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(batch.boxes_R4) == len(batch.ids_RL) == len(batch.tasks) == 6
    np.testing.assert_array_equal(batch.boxes_R4[3:], samples[1].boxes_N4[:3])
