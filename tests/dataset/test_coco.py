"""The COCO export: what pycocotools makes of it, and what it says about the run."""

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sca_batch.boxes import mask_to_rle
from sca_batch.dataset.coco import Exported, export_coco
from sca_batch.dataset.shards import ShardMark, iter_rows, shard_path, write_run, write_shard
from sca_batch.errors import ScaError
from sca_batch.manifests.read import read_manifest
from sca_batch.plan.plan import make_plan, plan_refs
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef, Region

# pycocotools' decode answers numpy's new copy protocol with an old signature.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RUN = {"fingerprint": {"task": "caption"}, "settings": {"model": "sca-tiny", "device": "cpu"}}


def region(region_id, mask=None, iou=0.75, **changes):
    box = (1.5, 2, 4.25, 6)
    rle = None if mask is None else mask_to_rle(mask)
    known = Region(box, 11, "grid_point", rle, iou, 0.5, ((3.0, 4.0),), prompt_id="p")
    return CaptionedRegion(region_id, replace(known, **changes), Caption(f"thing {region_id}", -1))


def blob(seed, size=(30, 40)):
    yy, xx = np.mgrid[: size[0], : size[1]]
    cy, cx, r = np.random.default_rng(seed).uniform([5, 5, 1], [25, 35, 12])
    return (yy - cy) ** 2 + (xx - cx) ** 2 <= r**2


def image(image_id, *regions):
    ref = ImageRef(image_id, f"k{image_id}", f"/x/{image_id}.jpg", f"sub/{image_id}.jpg")
    return ImageRecord(ref, "ok" if regions else "empty", "ab" * 32, 30, 40, tuple(regions))


def failed(image_id):
    return replace(
        image(image_id), status="failed", error_code="missing", error="no file", sha256=None
    )


def dataset(folder, *shards):
    write_run(folder, RUN)
    row = 0
    for index, records in enumerate(shards):
        mark = ShardMark(index, row, row + len(records) - 1, "f")
        write_shard(records, shard_path(folder, index), mark)
        row += len(records)
    return folder


@pytest.fixture
def written(tmp_path):
    shards = [
        [image(10, region(0, blob(1)), region(1, blob(2))), failed(11)],
        [image(7), image(8, region(0, None, None, prompt_box_xyxy=(-1, 0, 9, 9)))],
    ]
    target = tmp_path / "captions.json"
    counts = export_coco(dataset(tmp_path, *shards), target)
    return target, counts


def test_the_export_counts_what_it_wrote(written):
    assert written[1] == Exported(images=3, regions=3, failed=1)


def test_it_loads_in_pycocotools_and_each_mask_has_its_area_and_box(written):
    loaded = COCO(str(written[0]))
    assert sorted(loaded.getImgIds()) == [7, 8, 10]
    assert loaded.loadCats(loaded.getCatIds())[0]["name"] == "object"
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[10]))
    assert [annotation["id"] for annotation in annotations] == [1, 2]
    for annotation, mask in zip(annotations, [blob(1), blob(2)], strict=True):
        assert np.array_equal(loaded.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()


def test_results_of_pycocotools_load_against_it(written):
    loaded = COCO(str(written[0]))
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "segmentation", "score")}
        for annotation in loaded.dataset["annotations"]
        if annotation["segmentation"]
    ]
    assert len(loaded.loadRes(results).getAnnIds()) == 2


def test_an_annotation_has_every_field_of_its_region(written):
    target, _ = written
    annotations = json.loads(target.read_text())["annotations"]
    regions = [region for row in iter_rows(target.parent) for region in row["regions"]]
    for annotation, known in zip(annotations, regions, strict=True):
        assert annotation.keys() == {
            *["id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"],
            *["caption", "score", "attributes"],
        }
        assert annotation["iscrowd"] == 0
        assert annotation["category_id"] == 1
        for name in ("area", "bbox", "caption"):
            assert annotation[name] == known.pop(name)
        assert annotation["segmentation"] == (known.pop("segmentation") or [])
        assert annotation["attributes"] == known


def test_the_score_is_the_predicted_iou_and_without_one_the_captions(written):
    scores = [entry["score"] for entry in json.loads(written[0].read_text())["annotations"]]
    assert scores == [0.75, 0.75, pytest.approx(np.exp(-1))]


def test_info_tells_the_model_the_settings_the_frame_and_what_failed(written):
    document = json.loads(written[0].read_text())
    assert document["licenses"] == []
    info = document["info"]
    assert info["model"] == "sca-tiny"
    assert info["settings"] == RUN["settings"]
    assert info["fingerprint"] == RUN["fingerprint"]
    assert "EXIF" in info["coordinate_frame"]
    assert info["failed_images"] == [
        {
            "id": 11,
            "file_name": "sub/11.jpg",
            "key": "k11",
            "error_code": "missing",
            "error": "no file",
        }
    ]


def test_images_name_their_file_and_size(written):
    first = json.loads(written[0].read_text())["images"][0]
    assert (first["id"], first["file_name"]) == (10, "sub/10.jpg")
    assert (first["width"], first["height"]) == (40, 30)


def test_an_export_is_a_manifest_with_the_same_regions(written):
    target, _ = written
    plan = make_plan([read_manifest(str(target))])
    first, empty, boxed = plan_refs(plan)
    assert (first.image_id, first.uri) == (10, "/x/10.jpg")
    assert [prompt.mask_rle for prompt in first.prompts] == [
        mask_to_rle(blob(1)),
        mask_to_rle(blob(2)),
    ]
    assert first.extra["references"] == [["thing 0"], ["thing 1"]]
    assert empty.prompts == ()
    assert boxed.prompts[0].box_xyxy == (1.5, 2, 4.25, 6)


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param([], id="no shards"),
        pytest.param([[failed(1), failed(2)]], id="only failures"),
        pytest.param([[image(1)]], id="no regions"),
    ],
)
def test_a_dataset_with_little_in_it_still_loads(tmp_path, shards):
    export_coco(dataset(tmp_path, *shards), tmp_path / "captions.json")
    assert COCO(str(tmp_path / "captions.json")).getAnnIds() == []


def test_a_folder_that_is_no_dataset_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ScaError, match="not a dataset"):
        export_coco(tmp_path, tmp_path / "captions.json")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_leaves_no_half_export(tmp_path):
    dataset(tmp_path, [image(1, region(0, blob(1)))], [image(2)])
    shard_path(tmp_path, 1).write_bytes(b"PAR1")
    with pytest.raises(ScaError, match="shard-000001"):
        export_coco(tmp_path, tmp_path / "captions.json")
    assert not (tmp_path / "captions.json").exists()


def test_the_examples_of_the_documentation_run(written, monkeypatch, capsys):
    (written[0].parent / "OUT").symlink_to(written[0].parent)
    monkeypatch.chdir(written[0].parent)
    manual = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", manual, re.DOTALL):
        exec(block, names)
    assert names["mask"].shape == (30, 40)
    assert names["regions"].height == 3
    assert "sub/10.jpg (" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    def peak(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        regions = [region(i, blob(i)) for i in range(20)]
        dataset(
            folder, *([image(8 * shard + i, *regions) for i in range(8)] for shard in range(count))
        )
        tracemalloc.start()
        export_coco(folder, folder / "captions.json")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(24) < 1.5 * peak(3)
