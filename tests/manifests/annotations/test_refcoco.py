"""The refer format: which refs belong to a split, and pickles that are only read."""

from __future__ import annotations

import collections
import os
import pickle
import struct

import pytest

from sca_batch.errors import ScaError
from sca_batch.manifests.annotations.refcoco import in_split
from sca_batch.manifests.annotations.refer_pickle import read_refs


def ids(images):
    return {image.image_id: [region.region_id for region in image.regions] for image in images}


def test_the_published_protocol_takes_all_refs_of_every_image_of_the_split(refer, read):
    images, tally = read("refcocog", "val")
    assert ids(images) == {200: ["2"], 300: ["3", "1"]}
    assert images[1].extra["ref_splits"] == ["train", "val"]
    assert images[1].extra["ref_protocol"] == "published"
    reason = "regions of other splits (--ref-protocol clean leaves them out)"
    assert tally.noted[reason] == 1


def test_the_clean_protocol_takes_the_refs_of_the_split_only(refer, read):
    images, tally = read("refcocog", "val", ref_protocol="clean")
    assert ids(images) == {200: ["2"], 300: ["1"]}
    assert tally.dropped == {"regions of other splits on the same images": 1}


def test_images_are_sorted_by_id_whatever_the_files_order(refer, read):
    images, tally = read("refcocog", "train")
    assert [image.image_id for image in images] == [100, 300]
    assert tally.dropped == {"regions whose annotation instances.json does not list": 1}


def test_a_region_has_all_sentences_and_a_box_cut_to_whole_pixels(refer, read):
    images, _ = read("refcocog", "train")
    region = images[1].regions[0]
    assert region.phrases == ("left cat", "the grey cat")
    assert region.box_xyxy == (1, 2, 11, 7)


def test_a_box_that_becomes_empty_is_kept_and_noted(refer, read):
    images, tally = read("refcocog", "val")
    assert images[0].regions[0].box_xyxy == (0, 0, 0, 40)
    assert tally.noted["regions with an empty box"] == 1


def test_google_split_refcocog_and_umd_is_an_option(refer, read, tmp_path):
    (tmp_path / "refcocog/refs(google).p").unlink()
    with pytest.raises(ScaError, match=r"refcocog/refs\(google\).p"):
        read("refcocog")
    images, _ = read("refcocog", split_by="umd")
    assert images[0].extra["split_by"] == "umd"
    with pytest.raises(ScaError, match="expected --split-by google or umd"):
        read("refcocog", split_by="unc")


def test_the_data_sets_own_folder_is_a_root_too(refer, read, tmp_path):
    from sca_batch.manifests.annotations import SOURCES
    from sca_batch.manifests.annotations.sample import Tally
    from sca_batch.manifests.request import Request

    images = list(SOURCES["refcoco"](Request(tmp_path / "refcoco"), Tally()))
    assert any(file.is_file() for file in images[0].candidates)


def test_a_split_that_no_ref_is_in_names_those_there_are(refer, read):
    with pytest.raises(ScaError, match="no refs of the split 'testA'; expected --split train, val"):
        read("refcoco", "testA")


@pytest.mark.parametrize(
    ("split", "wanted", "belongs"),
    [
        ("testAB", "testA", True),
        ("testAB", "testB", True),
        ("testAB", "testC", False),
        ("testB", "test", True),
        ("train", "testA", False),
        ("trainval", "train", False),
        ("val", "val", True),
    ],
)
def test_refs_in_two_test_sets_belong_to_both(split, wanted, belongs):
    assert in_split(split, wanted) is belongs


# --- pickles


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_every_protocol_gives_the_same_refs(refer, tmp_path, protocol):
    refs = read_refs(tmp_path / "refcocog/refs(google).p")
    path = tmp_path / "again.p"
    path.write_bytes(pickle.dumps(refs, protocol))
    assert read_refs(path) == refs


def test_python_2s_text_of_bytes_and_of_characters_are_both_text(tmp_path):
    def short_string(text):
        return b"U" + struct.pack("<B", len(text)) + text

    head = b"\x80\x02](}("
    cells = b"".join(
        [
            *(short_string(b"ref_id"), b"K\x01", short_string(b"ann_id"), b"K\x02"),
            *(short_string(b"image_id"), b"K\x03", short_string(b"split"), short_string(b"train")),
            short_string(b"sentences"),
            *(b"](}(", short_string(b"sent"), short_string("caf\u00e9".encode())),
            *(short_string(b"raw"), b"X" + struct.pack("<I", 3) + "a\u00e9".encode(), b"ue"),
        ]
    )
    path = tmp_path / "refs.p"
    path.write_bytes(head + cells + b"ue.")
    (ref,) = read_refs(path)
    assert ref["sentences"] == [{"sent": "caf\u00e9", "raw": "a\u00e9"}]


class Touch:
    """A pickle of this creates a file when an ordinary unpickler loads it."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused_unrun(tmp_path, protocol):
    sentinel = tmp_path / "touched"
    content = pickle.dumps([Touch(sentinel)], protocol)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ScaError, match=r"asks for (posix|nt)\.mkdir"):
        read_refs(path)
    assert not sentinel.exists()
    pickle.loads(content)
    assert sentinel.exists(), "the pickle is harmless, and so the test shows nothing"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"c__builtin__\ngetattr\n.", id="getattr"),
        pytest.param(b"csubprocess\nPopen\n(S'id'\ntR.", id="a process"),
        pytest.param(b"(S'id'\nios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02\x82\x01.", id="an extension code"),
        pytest.param(b"Psomewhere\n.", id="a persistent id"),
        pytest.param(pickle.dumps(collections.OrderedDict(a=1)), id="OrderedDict"),
        pytest.param(b"", id="empty"),
        pytest.param(b"(lp0\nI1", id="cut off"),
        pytest.param(b"<html>not found</html>", id="a web page"),
        pytest.param(pickle.dumps({"refs": []}), id="a dict"),
        pytest.param(pickle.dumps([{"ref_id": 1}]), id="no ann_id"),
        pytest.param(pickle.dumps([7]), id="no dict inside"),
    ],
)
def test_what_is_not_plain_refs_is_one_clear_error(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ScaError) as error:
        read_refs(path)
    assert str(path) in str(error.value)
    assert "expected a list" in str(error.value)


def test_broken_instances_are_one_clear_error(refer, read):
    refer("refcocog/instances.json", b'{"images": [{"id": 300, "file_na')
    with pytest.raises(ScaError, match=r"instances.json, line 1, .* ends too early"):
        read("refcocog")


def test_missing_instances_are_named(refer, read, tmp_path):
    (tmp_path / "refcocog/instances.json").unlink()
    with pytest.raises(ScaError, match="expected it beside the refs"):
        read("refcocog")
