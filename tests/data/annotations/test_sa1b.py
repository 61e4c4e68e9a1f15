"""SA-1B's extracted folders and the tables of captions beside them."""

from __future__ import annotations

import json

import pytest

from sca_batch.errors import ScaError


def table(*rows):
    return "".join(f"{key}\t{json.dumps(value)}\n" for key, value in rows).encode()


def said(*captions):
    return [{"caption": caption, "conf": 0.9} for caption in captions]


def own_file(image_id, *regions):
    return {
        "image": {"image_id": image_id, "width": 200, "height": 100, "file_name": "x.jpg"},
        "annotations": [
            {"id": region_id, "bbox": bbox, "area": 9, "predicted_iou": 0.9}
            for region_id, bbox in regions
        ],
    }


CAPTIONS = table(
    ("sa_7-0-5001", said("a red cup", "a cup")),
    ("sa_7-1-5002", said("the floor\twith a tab")),
    ("sa_9-0-6001", said("sky")),
)


def test_boxes_come_from_the_images_own_files(put, read, tmp_path):
    put("captions/sa_000000.tsv", CAPTIONS)
    put("sa_000000/sa_7.json", own_file(7, (5002, [0, 0, 9.9, 9.9]), (5001, [1.5, 2, 30, 40])))
    put("sa_000000/sa_9.json", own_file(9, (1, [0, 0, 5, 5])))
    images, tally = read("sa1b")
    assert [image.image_id for image in images] == [7, 9]
    first = images[0]
    assert first.candidates[0] == tmp_path / "sa_000000/sa_7.jpg"
    assert (first.width, first.height) == (200, 100)
    assert [r.phrases for r in first.regions] == [
        ("a red cup", "a cup"),
        ("the floor\twith a tab",),
    ]
    assert [r.box_xyxy for r in first.regions] == [(1, 2, 31, 42), (0, 0, 9, 9)]
    assert images[1].regions == ()
    assert tally.dropped == {"regions that the image's annotations do not list": 1}


def test_boxes_come_from_an_annotation_table_where_there_is_one(put, read):
    size = {"size": [100, 200], "counts": "x"}
    put("captions/sa_000000.tsv", CAPTIONS)
    put(
        "annotations/sa_000000.tsv",
        table(
            ("sa_7-0-5001", {"id": 5001, "bbox": [1, 2, 30, 40], "segmentation": size}),
            ("sa_7-1-5002", {"id": 5002, "bbox": [0, 0, 9, 9], "segmentation": size}),
            ("sa_9-0-6001", {"id": 6001, "bbox": [0, 0, 5, 5], "segmentation": size}),
        ),
    )
    images, tally = read("sa1b")
    assert [[r.box_xyxy for r in image.regions] for image in images] == [
        [(1, 2, 31, 42), (0, 0, 9, 9)],
        [(0, 0, 5, 5)],
    ]
    assert (images[0].width, images[0].height) == (200, 100)
    assert not tally.dropped


def test_an_image_without_annotations_is_counted(put, read):
    put("captions/sa_000000.tsv", CAPTIONS)
    put("sa_000000/sa_7.json", own_file(7, (5001, [1, 2, 3, 4])))
    images, tally = read("sa1b")
    assert [image.image_id for image in images] == [7]
    assert tally.dropped["images whose sa_<id>.json is missing"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"sa_7-0-1\n", "line 1", id="no JSON"),
        pytest.param(b"seven\t[]\n", "the key 'seven'", id="no key"),
        pytest.param(b'sa_7-0-1\t{"caption": "x"}\n', "no list of captions", id="no list"),
        pytest.param(
            table(("7-0-1", []), ("9-0-1", []), ("7-0-2", [])), "image 7 again", id="in pieces"
        ),
    ],
)
def test_a_broken_table_is_one_clear_error(put, read, content, message):
    put("captions/sa_000000.tsv", content)
    for image_id in (7, 9):
        put(f"sa_000000/sa_{image_id}.json", own_file(image_id, (1, [0, 0, 2, 2])))
    with pytest.raises(ScaError, match=message) as error:
        read("sa1b")
    assert "sa_000000.tsv" in str(error.value)


def test_tables_that_are_not_aligned_are_refused(put, read):
    put("captions/sa_000000.tsv", CAPTIONS)
    put("annotations/sa_000000.tsv", table(("sa_7-0-5002", {"id": 5002, "bbox": [1, 2, 3, 4]})))
    with pytest.raises(ScaError, match=r"the key 'sa_7-0-5001' where .* has 'sa_7-0-5002'"):
        read("sa1b")


def test_a_folder_without_tables_says_what_is_expected(read):
    with pytest.raises(ScaError, match=r"expected captions/sa_000000\.tsv"):
        read("sa1b")
