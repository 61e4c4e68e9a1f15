"""Visual Genome's own files, and GRiT's version of them."""

from __future__ import annotations

import json

import pytest

from sca_batch.errors import ScaError


def test_images_stand_in_the_order_of_the_split_and_regions_in_that_of_the_file(
    visual_genome, read
):
    images, _ = read("vg")
    assert [image.image_id for image in images] == [2, 1]
    assert [[region.region_id for region in image.regions] for image in images] == [
        ["21", "20"],
        ["10"],
    ]


def test_phrases_are_raw_and_boxes_are_corners_that_may_leave_the_image(visual_genome, read):
    (second, first), _ = read("vg")
    assert first.regions[0].phrases == ("the clock is green ",)
    assert first.regions[0].box_xyxy == (4, 5, 24, 35)
    assert second.regions[0].box_xyxy == (-1, 0, 89, 10)
    assert (first.width, first.height) == (80, 60)


def test_the_folder_of_an_image_is_taken_from_its_url(visual_genome, read, tmp_path):
    (second, first), _ = read("vg")
    assert first.candidates[0] == tmp_path / "VG_100K_2/1.jpg"
    assert second.candidates[0] == tmp_path / "VG_100K/2.jpg"


def test_what_is_left_out_is_counted_by_reason(visual_genome, read):
    _, tally = read("vg")
    assert tally.dropped == {
        "images that image_data.json does not list": 1,
        "images without region descriptions": 1,
        "regions with a negative width or height": 1,
    }
    assert tally.noted == {"regions with an empty box": 1}


def test_another_split_has_other_images(visual_genome, read):
    images, tally = read("vg", "test")
    assert [image.image_id for image in images] == [5]
    assert not tally.dropped


def test_the_annotations_and_the_images_may_lie_elsewhere(visual_genome, read, tmp_path):
    folder = tmp_path / "elsewhere"
    (tmp_path / "annotations").rename(folder)
    images, _ = read("vg", annotations=folder, images=tmp_path / "there")
    assert images[0].candidates == (tmp_path / "there/VG_100K/2.jpg",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("image_data.json", b'[{"image_id": 1, "url"', "ends too early", id="cut off"),
        pytest.param("image_data.json", b"{}", "'{' where '['", id="an object"),
        pytest.param("image_data.json", b'[{"image_id": 2}]', "the url None", id="no url"),
        pytest.param("image_data.json", b"\xff\xfe[", "not UTF-8", id="another encoding"),
        pytest.param("region_descriptions.json", b'[{"id": 2}]', "no regions", id="no regions"),
        pytest.param(
            "region_descriptions.json",
            b'[{"id": 2, "regions": [{"region_id": 1, "phrase": 5, "x": 0, "y": 0}]}]',
            "regions[0]: no box",
            id="no box",
        ),
        pytest.param("densecap_splits.json", b'{"test": [1]}', "no list 'train'", id="no split"),
        pytest.param("densecap_splits.json", b'{"train": [1, 1]}', "twice", id="an image twice"),
        pytest.param("densecap_splits.json", b"", "ends too early", id="an empty file"),
        pytest.param("densecap_splits.json", b"{'train': []}", "Expecting value", id="no JSON"),
    ],
)
def test_a_broken_file_is_one_clear_error(visual_genome, read, tmp_path, name, content, said):
    visual_genome(f"annotations/{name}", content)
    with pytest.raises(ScaError) as error:
        read("vg")
    message = str(error.value)
    assert message.startswith(str(tmp_path / "annotations" / name))
    assert said in message
    assert "; expected " in message


def test_a_missing_file_says_where_it_should_be(visual_genome, read, tmp_path):
    (tmp_path / "annotations/image_data.json").unlink()
    with pytest.raises(ScaError, match=r"no image_data.json .* expected annotations/image_data"):
        read("vg")


def test_an_unknown_split_names_those_there_are(visual_genome, read):
    with pytest.raises(ScaError, match="expected train, val, test"):
        read("vg", "minival")


def test_grits_files_hold_captions_in_cocos_form(put, read, tmp_path):
    put(
        "train.json",
        {
            "images": [
                {"id": 2, "file_name": "2.jpg", "width": 80, "height": 60},
                {"id": 1, "file_name": "1.jpg", "width": 80, "height": 60},
                {"id": 3, "file_name": "3.jpg", "width": 80, "height": 60},
            ],
            "annotations": [
                {"id": 8, "image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1, "caption": "a b"},
                {"id": 7, "image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 1, "caption": "c"},
                {"id": 9, "image_id": 1, "bbox": [0, 0, 9, 9], "category_id": 1, "caption": "d"},
            ],
        },
    )
    put("VG_100K_2/1.jpg", (80, 60))
    images, tally = read("grit-vg")
    assert [(image.image_id, [r.phrases for r in image.regions]) for image in images] == [
        (2, [("c",)]),
        (1, [("a b",), ("d",)]),
    ]
    assert tmp_path / "VG_100K_2/1.jpg" in images[1].candidates
    assert tally.dropped == {"images without annotations": 1}


def test_grits_files_need_a_caption_per_region(put, read):
    put(
        "test.json",
        {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 6}],
            "annotations": [{"id": 8, "image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1}],
        },
    )
    with pytest.raises(ScaError, match=r"test.json, annotations\[0\]: no caption"):
        read("grit-vg", "test")


def test_the_same_error_names_the_place_in_the_file(visual_genome, read, tmp_path):
    path = tmp_path / "annotations/image_data.json"
    entries = json.loads(path.read_text())
    text = json.dumps(entries, indent=1).replace('"width": 80', '"width": 80,,', 1)
    path.write_text(text)
    with pytest.raises(ScaError) as error:
        read("vg")
    line = text[: text.index(",,")].count("\n") + 1
    assert f"line {line}, character {text.index(',,') + 1}" in str(error.value)
