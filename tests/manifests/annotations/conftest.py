"""Other people's data sets in small: files in their own formats, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sca_batch.manifests.annotations import SOURCES
from sca_batch.manifests.annotations.sample import Tally
from sca_batch.manifests.request import Request


@pytest.fixture
def put(tmp_path) -> Callable[[str, Any], Path]:
    """Writes a file below `tmp_path`: bytes as they are, a size as an image, the rest as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, tuple):
            Image.new("RGB", content).save(path)
        else:
            path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def read(tmp_path):
    """All images of a source below `tmp_path`, and the tally."""

    def run(source: str, split: str = "train", **options: Any):
        tally = Tally()
        request = Request(tmp_path, split=split, **options)
        return list(SOURCES[source](request, tally)), tally

    return run


@pytest.fixture
def visual_genome(put):
    """Four images: the split's order is not the files'; one has no regions, one a bad box."""
    url = "https://cs.stanford.edu/people/rak248/{}/{}.jpg"
    put(
        "annotations/image_data.json",
        [
            {
                "image_id": i,
                "url": url.format(folder, i),
                "width": 80,
                "height": 60,
                "coco_id": None,
            }
            for i, folder in [(1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K"), (5, "VG_100K")]
        ],
    )

    def region(region_id, phrase, x, y, width, height, image_id=1):
        return {
            "region_id": region_id,
            "width": width,
            "height": height,
            "image_id": image_id,
            "phrase": phrase,
            "y": y,
            "x": x,
        }

    put(
        "annotations/region_descriptions.json",
        [
            {"id": 1, "regions": [region(10, "the clock is green ", 4, 5, 20, 30)]},
            {
                "id": 2,
                "regions": [
                    region(21, "Trees, behind", -1, 0, 90, 10),
                    region(20, "a line", 5, 5, 0, 7),
                    region(22, "impossible", 5, 5, -3, 7),
                ],
            },
            {"id": 3, "regions": []},
            {"id": 5, "regions": [region(50, "of the test", 0, 0, 8, 8)]},
        ],
    )
    put("annotations/densecap_splits.json", {"train": [2, 99, 1, 3], "val": [], "test": [5]})
    put("VG_100K_2/1.jpg", (80, 60))
    put("VG_100K/2.jpg", (80, 60))
    return put


def pickle_like_python_2(value: Any) -> bytes:
    """Protocol 0 as Python 2 wrote it: text, `str` as bytes, `unicode` apart, long and bool."""

    def emit(value: Any) -> str:
        if value is None:
            return "N"
        if isinstance(value, bool):
            return f"I0{int(value)}\n"
        if isinstance(value, int):
            return f"L{value}L\n" if abs(value) >= 2**31 else f"I{value}\n"
        if isinstance(value, bytes):  # stands for Python 2's unicode here
            return f"V{value.decode()}\n"
        if isinstance(value, str):
            return f"S{value!r}\n"
        if isinstance(value, list):
            return "(l" + "".join(emit(item) + "a" for item in value)
        if isinstance(value, dict):
            return "(d" + "".join(emit(k) + emit(v) + "s" for k, v in value.items())
        raise TypeError(type(value))

    return (emit(value) + ".").encode()


def ref(ref_id, ann_id, image_id, split, *sentences):
    """One ref as the refer format has it."""
    return {
        "sent_ids": [],
        "file_name": f"COCO_train2014_{image_id:012}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "category_id": 1,
        "sentences": [
            {"tokens": text.split(), "raw": text.upper(), "sent_id": 0, "sent": text}
            for text in sentences
        ],
    }


REFS = [
    ref(3, 31, 300, "train", "left cat", "the grey cat"),
    ref(1, 32, 300, "val", "right cat"),
    ref(2, 21, 200, "val", "tall man"),
    ref(4, 11, 100, "train", "tree"),
    ref(5, 99, 100, "train", "its annotation is gone"),
]
INSTANCES = {
    "info": {"year": 2014},
    "images": [
        {"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "width": 64, "height": 48}
        for i in (300, 100, 200)
    ],
    "annotations": [
        {"id": 31, "image_id": 300, "bbox": [1.9, 2.9, 10.99, 5.5], "category_id": 1},
        {"id": 32, "image_id": 300, "bbox": [30, 2, 10, 5], "category_id": 1},
        {"id": 21, "image_id": 200, "bbox": [0, 0, 0.7, 40], "category_id": 1},
        {"id": 11, "image_id": 100, "bbox": [5, 5, 20, 20], "category_id": 1},
        {"id": 12, "image_id": 100, "bbox": "not asked for", "category_id": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}],
}


@pytest.fixture
def refer(put):
    """RefCOCOg as google split it: objects of one image stand in different splits."""
    for name in ("refcocog/refs(google).p", "refcocog/refs(umd).p", "refcoco/refs(unc).p"):
        put(name, pickle_like_python_2(REFS))
        put(f"{name.split('/')[0]}/instances.json", INSTANCES)
    for image_id in (100, 200, 300):
        put(f"images/mscoco/images/train2014/COCO_train2014_{image_id:012}.jpg", (64, 48))
    return put
