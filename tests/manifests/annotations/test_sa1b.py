"""SA-1B's extracted folders and the tables of captions beside them."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from sca_batch.cli import main
from sca_batch.errors import ScaError
from sca_batch.images.decode import read_image
from sca_batch.manifests.references import read_captioned


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


def tar_of(path, *members, prefix="./"):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            if isinstance(content, tuple):
                buffer = io.BytesIO()
                Image.new("RGB", content, "#336699").save(buffer, "PNG")
                content = buffer.getvalue()
            elif not isinstance(content, bytes):
                content = json.dumps(content).encode()
            info = tarfile.TarInfo(f"{prefix}{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("prefix", ["./", ""])
def test_a_tar_is_read_where_it_is(put, tmp_path, prefix):
    put("captions/sa_000000.tsv", CAPTIONS)
    tar_of(
        tmp_path / "sa_000000.tar",
        ("sa_7.jpg", (200, 100)),
        ("sa_7.json", own_file(7, (5002, [0, 0, 9.9, 9.9]), (5001, [1.5, 2, 30, 40]))),
        ("sa_9.json", own_file(9, (6001, [0, 0, 5, 5]))),
        prefix=prefix,
    )
    target = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(["manifest", "build", "--from", "sa1b", str(tmp_path), "-o", str(target),
              "--check-files", "sizes", "--relative"])  # fmt: skip

    assert stopped.value.code == 0
    images = read_captioned(target)
    assert len(images) == 1, "the picture of image 9 is not in the tar"
    assert images[0].boxes_xyxy.tolist() == [[1, 2, 31, 42], [0, 0, 9, 9]]
    assert ".tar!/" in images[0].uri
    assert read_image(images[0].uri).rgb.shape == (100, 200, 3)


def test_an_image_that_is_not_in_the_tar_is_counted(put, read, tmp_path):
    put("captions/sa_000000.tsv", CAPTIONS)
    tar_of(tmp_path / "sa_000000.tar", ("sa_7.jpg", (200, 100)), ("sa_9.jpg", (200, 100)),
           ("sa_9.json", own_file(9, (6001, [0, 0, 5, 5]))))  # fmt: skip
    images, tally = read("sa1b")

    assert [image.image_id for image in images] == [9]
    assert tally.dropped == {"images whose sa_<id>.json is missing": 1}


def test_a_broken_tar_is_one_clear_error(put, read):
    put("captions/sa_000000.tsv", CAPTIONS)
    put("sa_000000.tar", b"no tar" * 200)
    with pytest.raises(ScaError, match=r"sa_000000\.tar: not a readable tar"):
        read("sa1b")


def test_captions_below_a_confidence_are_left_out_where_that_is_asked_for(put, read):
    rows = [{"caption": "sure", "conf": 0.9}, {"caption": "guess", "conf": 0.2}]
    content = table(("sa_7-0-1", rows), ("sa_7-1-2", rows[1:]))
    put("captions/sa_000000.tsv", content)
    put("sa_000000/sa_7.json", own_file(7, (1, [0, 0, 5, 5]), (2, [0, 0, 5, 5])))

    [everything], tally = read("sa1b")
    assert [r.phrases for r in everything.regions] == [("sure", "guess"), ("guess",)]
    assert not tally.dropped

    [image], tally = read("sa1b", min_confidence=0.5)
    assert [r.phrases for r in image.regions] == [("sure",)]
    assert tally.dropped == {"captions below the confidence": 2, "regions without a caption": 1}


def test_a_caption_without_a_confidence_cannot_be_judged(put, read):
    put("captions/sa_000000.tsv", table(("sa_7-0-1", [{"caption": "x"}])))
    put("sa_000000/sa_7.json", own_file(7, (1, [0, 0, 5, 5])))
    assert len(read("sa1b")[0]) == 1
    with pytest.raises(ScaError, match="line 1: the conf None"):
        read("sa1b", min_confidence=0.5)
