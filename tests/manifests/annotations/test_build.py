"""Annotation files to manifests that the ordinary reader takes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from sca_batch.errors import ScaError
from sca_batch.manifests.annotations.build import build_manifest
from sca_batch.manifests.listing import prompts_from_cell
from sca_batch.manifests.read import read_manifest
from sca_batch.manifests.request import Request
from sca_batch.plan.plan import make_plan, plan_refs


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_holds_what_was_annotated(visual_genome, tmp_path):
    target = tmp_path / "vg.jsonl"
    summary = build_manifest("vg", Request(tmp_path), target)
    second, first = lines(target)
    assert first == {
        "uri": str(tmp_path / "VG_100K_2/1.jpg"),
        "image_id": 1,
        "width": 80,
        "height": 60,
        "boxes_xyxy": [[4, 5, 24, 35]],
        "references": [["the clock is green "]],
        "prompt_ids": ["10"],
        "task": "caption",
        "split": "train",
        "source": "vg",
    }
    assert second["image_id"] == 2
    assert (summary.images, summary.regions, summary.references) == (2, 3, 3)


def test_the_ordinary_reader_makes_a_plan_of_it(refer, tmp_path):
    target = tmp_path / "refs.jsonl"
    build_manifest("refcocog", Request(tmp_path, "val"), target)
    refs = list(plan_refs(make_plan([read_manifest(str(target))])))
    assert [ref.image_id for ref in refs] == [200, 300]
    assert [prompt.box_xyxy for prompt in refs[1].prompts] == [
        (1.0, 2.0, 11.0, 7.0),
        (30.0, 2.0, 40.0, 7.0),
    ]
    assert [prompt.prompt_id for prompt in refs[1].prompts] == ["3", "1"]
    assert refs[1].extra["references"] == [["left cat", "the grey cat"], ["right cat"]]
    assert refs[1].extra["ref_splits"] == ["train", "val"]


def test_parquet_and_json_lines_say_the_same(refer, tmp_path):
    frames = []
    for suffix in (".jsonl", ".parquet"):
        target = tmp_path / f"refs{suffix}"
        build_manifest("refcocog", Request(tmp_path, "val"), target)
        frames.append(read_manifest(str(target)).frame)
    assert frames[0].drop("extra").equals(frames[1].drop("extra"))
    extras = [[json.loads(text) for text in frame["extra"]] for frame in frames]
    assert extras[0] == extras[1]
    assert prompts_from_cell(frames[1]["prompts"][0]) is not None


def test_a_missing_image_is_left_out_and_named(visual_genome, tmp_path):
    (tmp_path / "VG_100K/2.jpg").unlink()
    summary = build_manifest("vg", Request(tmp_path), tmp_path / "vg.jsonl")
    assert [row["image_id"] for row in lines(tmp_path / "vg.jsonl")] == [1]
    reason = "images whose file is missing"
    assert summary.tally.dropped[reason] == 1
    assert summary.examples[reason] == [str(tmp_path / "VG_100K/2.jpg")]
    everything = build_manifest("vg", Request(tmp_path), None, check_files="none")
    assert everything.images == 2


def test_sizes_are_compared_when_asked(visual_genome, tmp_path):
    Image.new("RGB", (60, 80)).save(tmp_path / "VG_100K/2.jpg")
    summary = build_manifest("vg", Request(tmp_path), tmp_path / "vg.jsonl", check_files="sizes")
    assert [row["image_id"] for row in lines(tmp_path / "vg.jsonl")] == [1]
    (example,) = summary.examples["images whose size is not the annotated one"]
    assert "80 x 60 annotated, 60 x 80" in example


def test_paths_may_start_at_the_manifest(visual_genome, tmp_path):
    target = tmp_path / "manifests/vg.jsonl"
    target.parent.mkdir()
    build_manifest("vg", Request(tmp_path), target, relative=True)
    assert [row["uri"] for row in lines(target)] == ["../VG_100K/2.jpg", "../VG_100K_2/1.jpg"]
    uri = read_manifest(str(target)).frame["uri"][0]
    assert (tmp_path / "manifests" / uri).resolve() == (tmp_path / "VG_100K/2.jpg").resolve()


def test_a_dry_run_counts_and_writes_nothing(visual_genome, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    summary = build_manifest("vg", Request(tmp_path), None, limit=1)
    assert summary.images == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_when_no_image_is_left(visual_genome, tmp_path):
    target = tmp_path / "vg.jsonl"
    with pytest.raises(ScaError, match=r"Looked for .*VG_100K/5.jpg.* --check-files none"):
        build_manifest("vg", Request(tmp_path, "test"), target)
    assert not target.exists()


def test_an_error_in_the_middle_leaves_no_half_manifest(visual_genome, tmp_path):
    size = {"size": [10, 10], "counts": "x"}
    rows = [
        ("7-0-1", {"id": 1, "bbox": [0, 0, 2, 2], "segmentation": size}),
        ("9-0-1", {"id": 1, "bbox": [0, 0, 2, "two"], "segmentation": size}),
    ]
    captions = [(key, [{"caption": "x"}]) for key, _ in rows]
    for folder, content in (("captions", captions), ("annotations", rows)):
        text = "".join(f"{key}\t{json.dumps(value)}\n" for key, value in content)
        visual_genome(f"{folder}/sa_000000.tsv", text.encode())
    target = tmp_path / "sa1b.jsonl"
    with pytest.raises(ScaError, match="line 2: no bbox"):
        build_manifest("sa1b", Request(tmp_path), target, check_files="none")
    assert [path for path in tmp_path.iterdir() if "sa1b" in path.name] == []


def test_a_corrupt_file_says_what_to_type_next(visual_genome, tmp_path):
    visual_genome("annotations/image_data.json", b"[{")
    with pytest.raises(ScaError) as error:
        build_manifest("vg", Request(tmp_path, "val"), None)
    assert str(error.value).endswith(
        f"Fetch the file again, then look: sca manifest build --from vg {tmp_path} --split val "
        "--dry-run"
    )


def test_the_target_is_a_manifest(visual_genome, tmp_path):
    with pytest.raises(ScaError, match=r"-o .*vg.jsonl"):
        build_manifest("vg", Request(tmp_path), tmp_path / "vg.csv")
    with pytest.raises(ScaError, match="mkdir -p"):
        build_manifest("vg", Request(tmp_path), tmp_path / "not/there/vg.jsonl")
