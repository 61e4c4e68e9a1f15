"""Memory is bounded by what is said: pixels, decoding ahead, prompts of given regions, masks."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sca_batch.captioners.sca import ScaCaptioner
from sca_batch.captioners.settings import CaptionSettings
from sca_batch.images.decode import DecodedImage
from sca_batch.pipeline.ahead import decode_ahead
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import Caption, ImageRef, Prompt
from sca_batch.regions.settings import RegionSettings


def refs(folder, count, boxes=1):
    Image.new("RGB", (90, 60)).save(folder / "a.png")
    prompts = tuple(Prompt(box_xyxy=(1.0, 1.0, 40.0 + i, 30.0)) for i in range(boxes))
    return [ImageRef(i, str(i), str(folder / "a.png"), "a.png", prompts) for i in range(count)]


class Watching:
    """Captions that do not need anything; how many pixels were held when they were asked for."""

    needs_embedding = needs_crop_embeddings = False

    def __init__(self, needs_pixels):
        self.needs_pixels = needs_pixels
        self.held = []

    def caption(self, images, regions, at_once):
        self.held.append(sum(0 if i.rgb is None else i.rgb.nbytes for i in images))
        assert all(image.size_hw == (60, 90) for image in images)
        return [[Caption("fine", -0.5) for _ in given] for given in regions]


MODEL = SimpleNamespace(config=SimpleNamespace(image_size=32), device="cpu")


def test_pixels_are_let_go_of_when_nobody_will_look_at_them_again(tmp_path):
    watching = Watching(needs_pixels=False)
    batches = BatchSettings(caption_batch=100)
    records = list(Pipeline(MODEL, watching, RegionSettings(), batches).run(refs(tmp_path, 20)))
    assert [record.status for record in records] == ["ok"] * 20
    assert {(r.height, r.width) for r in records} == {(60, 90)}
    assert all(r.sha256 for r in records)
    assert watching.held == [0]


def test_pixels_that_a_captioner_needs_wait_within_the_limit(tmp_path):
    each = 90 * 60 * 3
    watching = Watching(needs_pixels=True)
    batches = BatchSettings(caption_batch=100, decode_ahead_bytes=5 * each)
    list(Pipeline(MODEL, watching, RegionSettings(), batches).run(refs(tmp_path, 20)))
    assert max(watching.held) == 6 * each
    assert sum(watching.held) == 20 * each


@pytest.mark.parametrize("limit", [1 << 20, 10 << 20, 1 << 30])
def test_decoding_ahead_counts_what_is_in_flight(limit):
    each = 3 << 20
    alive = most = 0
    lock = threading.Lock()

    def decode(ref):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return DecodedImage(np.zeros((1024, 1024, 3), np.uint8), "x")

    batches = BatchSettings(decode_threads=4, decode_ahead=16, decode_ahead_bytes=limit)
    images = [ImageRef(i, str(i), "", "") for i in range(200)]
    for _, image in decode_ahead(images, decode, batches):
        assert image.rgb.nbytes == each
        with lock:
            alive -= 1
    # The one that is worked on is not counted; of the others one always may be begun.
    assert most <= max(2, limit // each + 2)


class ShortOfMemory:
    """A model that fits so many prompts at a time."""

    def __init__(self, model, fits):
        self.model, self.fits, self.asked = model, fits, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def fuse_prompts(self, embedding, **prompts):
        count = len(next(value for value in prompts.values() if value is not None))
        self.asked.append(count)
        if count > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model.fuse_prompts(embedding, **prompts)


def test_given_regions_shrink_with_memory_too(shapes_model, tmp_path):
    short = ShortOfMemory(shapes_model, 16)
    captioner = ScaCaptioner(shapes_model, CaptionSettings(num_beams=1, max_new_tokens=2))
    pipeline = Pipeline(short, captioner, RegionSettings(), BatchSettings())
    first, second = pipeline.run(refs(tmp_path, 2, boxes=64))
    assert [first.status, second.status] == ["ok", "ok"]
    assert len(first.regions) == 64
    assert short.asked == [64, 32, *[16] * 4, *[16] * 4]


@pytest.mark.parametrize(("more", "is_refused"), [(0, False), (1, True)])
def test_more_words_than_the_language_model_has_positions_for_are_refused(
    shapes_model, more, is_refused
):
    from sca_batch.errors import ScaError

    settings = CaptionSettings(max_new_tokens=shapes_model.config.most_new_tokens + more)
    if is_refused:
        with pytest.raises(ScaError, match="expected at most"):
            ScaCaptioner(shapes_model, settings)
    else:
        captioner = ScaCaptioner(shapes_model, settings)
        queries = torch.zeros(1, 1, 8, shapes_model.config.text_width)
        ids = captioner.model.generate(queries, num_beams=1, max_new_tokens=settings.max_new_tokens)
        assert ids
