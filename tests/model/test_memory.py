"""Batches that do not fit: halved, remembered, grown back; at one, the image is a row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sca_batch.model.memory import GROW_AFTER, Allowance, fit, is_out_of_memory
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import Caption, ImageRef, Prompt
from sca_batch.regions.settings import RegionSettings


def only(most, tried, error=torch.OutOfMemoryError):
    def action(size):
        tried.append(size)
        if size > most:
            raise error("CUDA out of memory")
        return size

    return action


def test_the_size_is_halved_until_it_fits_and_remembered():
    allowance, tried = Allowance("a", 32), []
    assert fit(only(5, tried), allowance) == 4
    assert tried == [32, 16, 8, 4]
    assert fit(only(5, tried), allowance) == 4
    assert tried[4:] == [4]


def test_it_grows_back_after_a_while():
    allowance = Allowance("a", 8)
    fit(only(2, []), allowance)
    for _ in range(3 * GROW_AFTER):
        fit(only(100, []), allowance)
    assert allowance.size == 8


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_nothing_fits(error):
    assert fit(only(0, [], error), Allowance("a", 4)) is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "TensorRT: [OutOfMemory] requested size was 1073741824 bytes",
    ],
)
def test_no_memory_is_known_in_all_its_spellings(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


def test_another_error_is_not_taken_for_it():
    def action(size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fit(action, Allowance("a", 4))


class Narrow:
    """A captioner whose device holds three regions at once, and no region wider than 50."""

    needs_pixels = needs_embedding = needs_crop_embeddings = False

    def __init__(self):
        self.sizes = []

    def caption(self, images, regions, at_once):
        boxes = [p.region.box_xyxy for given in regions for p in given]
        self.sizes.append(min(at_once, len(boxes)))
        if self.sizes[-1] > 3 or any(box[2] - box[0] > 50 for box in boxes):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[Caption("fine", -0.5) for _ in given] for given in regions]


def test_one_image_too_large_for_the_device_is_a_row_and_the_others_are_captioned(tmp_path):
    Image.new("RGB", (90, 20)).save(tmp_path / "a.png")
    boxes = [(0.0, 0.0, 60.0 if i == 2 else 9.0, 9.0) for i in range(5)]
    refs = [
        ImageRef(i, str(i), str(tmp_path / "a.png"), "a.png", (Prompt(box_xyxy=box),))
        for i, box in enumerate(boxes)
    ]
    model = SimpleNamespace(config=SimpleNamespace(image_size=32), device="cpu")
    captioner = Narrow()
    batches = BatchSettings(caption_batch=16)
    records = list(Pipeline(model, captioner, RegionSettings(), batches).run(refs))
    assert [r.error_code for r in records] == [None, None, "oom", None, None]
    assert [len(r.regions) for r in records] == [1, 1, 0, 1, 1]
