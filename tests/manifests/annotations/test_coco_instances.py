"""COCO, Objects365 and V3Det: one reader, with the places where each keeps its files."""

from __future__ import annotations

import random

import pytest
from pycocotools.coco import COCO

from sca_batch.errors import ScaError

PLACES = {
    "coco": "annotations/instances_{}2017.json",
    "objects365": "objects365v2_{}_fixann.json",
    "v3det": "annotations/v3det_2023_v1_{}.json",
}


@pytest.fixture
def coco_like(put, document):
    for place in PLACES.values():
        put(place.format("train"), document)
    return put


@pytest.fixture
def document():
    return {
        "info": {"description": "small", "nested": [{"images": [1, 2]}]},
        "licenses": [],
        "categories": [{"id": 7, "name": "traffic light"}, {"id": 3, "name": "Bed/Couch "}],
        "annotations": [
            {
                "id": 500,
                "image_id": 9,
                "category_id": 7,
                "bbox": [1.99, 2.5, 10.9, 20.1],
                "iscrowd": 0,
                "segmentation": [[1, 2, 3, 4, 5, 6]],
                "area": 3.5,
            },
            {
                "id": 501,
                "image_id": 4,
                "category_id": 3,
                "bbox": [0, 0, 30, 40],
                "iscrowd": 1,
                "segmentation": {"counts": [1200], "size": [30, 40]},
            },
            {"id": 502, "image_id": 9, "category_id": 3, "bbox": [5.5, 6.5, 0.9, 8]},
            {"id": 503, "image_id": 77, "category_id": 3, "bbox": [1, 1, 1, 1]},
            {"id": 504, "image_id": 4, "category_id": 55, "bbox": [1, 1, 1, 1]},
        ],
        "images": [
            {"id": 9, "file_name": "images/v1/patch8/nine.jpg", "width": 40, "height": 30},
            {"id": 4, "file_name": "four.jpg", "width": 40, "height": 30},
            {"id": 6, "file_name": "six.jpg", "width": 40, "height": 30},
        ],
    }


@pytest.mark.parametrize("source", PLACES)
def test_the_phrase_is_the_categorys_name_and_boxes_are_whole(coco_like, read, source):
    images, tally = read(source)
    assert [image.image_id for image in images] == [9, 4]
    nine, four = images
    assert [r.phrases for r in nine.regions] == [("traffic light",), ("Bed/Couch ",)]
    assert [r.region_id for r in nine.regions] == ["500", "502"]
    assert [r.box_xyxy for r in nine.regions] == [(1, 2, 11, 22), (5, 6, 5, 14)]
    assert [r.region_id for r in four.regions] == ["501"]
    assert tally.noted == {"crowd regions": 1, "regions with an empty box": 1}
    assert tally.dropped == {
        "images without annotations": 1,
        "regions of an image that the file does not list": 1,
        "regions of a category that the file does not list": 1,
    }


def test_each_data_set_keeps_its_images_in_its_own_place(coco_like, read, tmp_path):
    first = {source: read(source)[0][0].candidates for source in PLACES}
    name = "images/v1/patch8/nine.jpg"
    assert first["coco"][:2] == (
        tmp_path / "train2017" / name,
        tmp_path / "images/train2017" / name,
    )
    assert first["objects365"][:2] == (
        tmp_path / "train" / name,
        tmp_path / "train/patch8/nine.jpg",
    )
    assert first["v3det"][0] == tmp_path / name


def test_objects365s_validation_file_has_another_name(put, read, document):
    put("objects365v2_val.json", document)
    assert len(read("objects365", "val")[0]) == 2
    with pytest.raises(ScaError, match=r"objects365v2_train_fixann\.json"):
        read("objects365", "train")


def test_grouping_equals_pycocotools(put, read, tmp_path):
    rng = random.Random(5)
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 90, "height": 70}
        for i in rng.sample(range(1, 10**12), 40)
    ]
    annotations = [
        {
            "id": i + 1,
            "image_id": rng.choice(images)["id"],
            "category_id": rng.choice([1, 2]),
            "bbox": [rng.uniform(0, 50) for _ in range(4)],
        }
        for i in range(200)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = put(PLACES["coco"].format("val"), document)
    coco = COCO(path)
    found, _ = read("coco", "val")
    expected = [i for i in coco.getImgIds() if coco.imgToAnns[i]]
    assert sorted(image.image_id for image in found) == sorted(expected)
    for image in found:
        theirs = coco.imgToAnns[image.image_id]
        assert [r.region_id for r in image.regions] == [str(a["id"]) for a in theirs]
        names = [(coco.cats[a["category_id"]]["name"],) for a in theirs]
        assert [r.phrases for r in image.regions] == names
        for region, annotation in zip(image.regions, theirs, strict=True):
            x, y, w, h = map(int, annotation["bbox"])
            assert region.box_xyxy == (x, y, x + w, y + h)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\]: the bbox"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, r"annotations\[0\]: the bbox"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, r"annotations\[0\]: the bbox"),
        ("annotations", {"bbox": None}, r"annotations\[0\]: the bbox None"),
        ("annotations", {"image_id": "nine"}, "no id or no image_id"),
        ("annotations", {"category_id": None}, "no category_id"),
        ("images", {"width": 0}, r"images\[0\]: the size 0 x 30"),
        ("images", {"file_name": ""}, "no file_name"),
        ("images", {"id": 4}, "the id 4 stands there twice"),
        ("categories", {"name": 5}, r"categories\[0\]: no id or no name"),
    ],
)
def test_an_entry_that_is_not_cocos_is_named(put, read, document, key, change, said):
    document[key][0] |= change
    put(PLACES["coco"].format("train"), document)
    with pytest.raises(ScaError, match=said):
        read("coco")


def test_a_file_without_annotations_is_no_annotation_file(put, read, document):
    del document["annotations"]
    put(PLACES["coco"].format("train"), document)
    with pytest.raises(ScaError, match="no list 'annotations' in it"):
        read("coco")
