import json

import pytest

from sca_batch.errors import ScaError
from sca_batch.manifests.references import read_captioned


def write(folder, *rows):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_images_with_boxes_and_phrases(tmp_path):
    images = read_captioned(
        write(
            tmp_path,
            {"uri": "a.png", "boxes_xyxy": [[0, 0, 4, 5], [1, 1, 2, 2]],
             "references": [["a cat", "cat"], "a cup"], "task": "recognition"},
            {"uri": "b.png", "boxes_xywh": [[1, 2, 3, 4]], "references": [["dog"]]},
        )
    )  # fmt: skip

    first, second = images[0], images[1]
    assert (len(images), images.num_regions) == (2, 3)
    assert first.phrases == (("a cat", "cat"), ("a cup",))
    assert first.task == "recognition"
    assert second.task == "caption"
    assert second.boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert second.uri == str(tmp_path / "b.png")


def test_regions_without_phrases_and_images_without_regions_are_counted_and_left_out(tmp_path):
    images = read_captioned(
        write(
            tmp_path,
            {"uri": "a.png", "boxes_xyxy": [[0, 0, 4, 5], [1, 1, 2, 2]], "references": [[], ["x"]]},
            {"uri": "b.png", "boxes_xyxy": []},
            {"uri": "c.png", "references": ["about the whole image"]},
        )
    )

    assert [image.phrases for image in (images[0],)] == [(("x",),)]
    assert images.left_out == {"images": 2, "regions": 1}


def test_a_manifest_without_captioned_regions_says_what_is_expected(tmp_path):
    with pytest.raises(ScaError, match="boxes_xyxy and references"):
        read_captioned(write(tmp_path, {"uri": "a.png", "boxes_xyxy": [[0, 0, 4, 5]]}))


def test_the_digest_is_of_the_rows_and_not_of_their_place(tmp_path):
    row = {"uri": "a.png", "boxes_xyxy": [[0, 0, 4, 5]], "references": [["x"]]}
    (tmp_path / "other").mkdir()
    one, two = write(tmp_path, row), write(tmp_path / "other", row)

    assert read_captioned(one).digest() == read_captioned(two).digest()
    changed = write(tmp_path / "other", row | {"references": [["y"]]})
    assert read_captioned(changed).digest() != read_captioned(one).digest()
