"""`sca manifest` as it is typed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from sca_batch.cli.manifest import manifest
from sca_batch.errors import ScaError
from sca_batch.manifests.annotations import SOURCES
from sca_batch.manifests.read import read_manifest
from sca_batch.manifests.request import KINDS
from sca_batch.plan.plan import make_plan


@pytest.fixture
def sca_manifest(tmp_path, monkeypatch):
    """Runs `sca manifest ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, code=0, stdin=None):
        result = CliRunner().invoke(manifest, [str(a) for a in arguments], input=stdin)
        if isinstance(result.exception, ScaError):
            raise result.exception
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def coco(tmp_path):
    """COCO's layout with two images, one of them not there."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    Image.new("RGB", (40, 30)).save(root / "val2017/1.jpg")
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": 10 + i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 1}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(document))
    return root


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_help_offers_every_source():
    assert list(SOURCES) == list(KINDS)


def test_a_data_set_becomes_a_manifest_named_after_it(sca_manifest, coco, tmp_path):
    result = sca_manifest("build", "--from", "coco", coco, "--split", "val")
    (row,) = rows(tmp_path / "coco-val.jsonl")
    assert row["references"] == [["person"]]
    assert row["boxes_xyxy"] == [[1, 2, 31, 22]]
    assert result.stdout == ""
    assert "coco, split val: 1 images, 1 regions, 1 phrases" in result.stderr
    assert "dropped, images whose file is missing: 1" in result.stderr
    assert "kept, crowd regions: 2" in result.stderr
    assert "sca manifest check coco-val.jsonl" in result.stderr
    assert sca_manifest("check", "coco-val.jsonl").stdout.endswith("No problems.\n")


def test_a_dry_run_prints_the_summary_and_writes_nothing(sca_manifest, coco, tmp_path):
    result = sca_manifest("build", "--from", "coco", coco, "--split", "val", "--dry-run")
    assert "1 images" in result.stdout
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_manifest_that_is_there_is_not_replaced_unasked(sca_manifest, coco, tmp_path):
    target = tmp_path / "m.jsonl"
    target.write_text("mine\n")
    command = ("build", "--from", "coco", coco, "--split", "val", "-o", target)
    with pytest.raises(ScaError, match="--overwrite"):
        sca_manifest(*command)
    assert target.read_text() == "mine\n"
    sca_manifest(*command, "--overwrite", "--task", "recognition")
    assert rows(target)[0]["task"] == "recognition"


def test_sizes_are_compared_with_the_file_after_its_orientation(sca_manifest, coco, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(coco / "val2017/2.jpg", exif=exif)
    sca_manifest("build", "--from", "coco", coco, "--split", "val", "--check-files", "sizes")
    assert len(rows(tmp_path / "coco-val.jsonl")) == 2
    Image.new("RGB", (30, 40)).save(coco / "val2017/2.jpg")
    command = ("build", "--from", "coco", coco, "--split", "val", "--check-files", "sizes")
    result = sca_manifest(*command, "--overwrite")
    assert "dropped, images whose size is not the annotated one: 1" in result.stderr


def test_options_of_data_sets_need_a_data_set(sca_manifest, shapes_images):
    with pytest.raises(ScaError, match="--ref-protocol describes a data set"):
        sca_manifest("build", shapes_images, "--ref-protocol", "clean")
    with pytest.raises(ScaError, match="reads one folder"):
        sca_manifest("build", "--from", "vg", shapes_images, shapes_images)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--annotations", "gone"], "--annotations gone: no such file or folder"),
        (["--images", "gone"], "--images gone: no such folder"),
        (["--limit", 0], "--limit is 0; expected a whole number of at least 1"),
    ],
)
def test_an_option_that_cannot_be_met_is_named(sca_manifest, coco, typed, message):
    with pytest.raises(ScaError, match=message):
        sca_manifest("build", "--from", "coco", coco, *typed)


def test_a_folder_becomes_a_manifest_with_the_same_plan(sca_manifest, shapes_images, tmp_path):
    result = sca_manifest("build", shapes_images, "--relative")
    found = rows(tmp_path / "images.jsonl")
    assert found == [{"uri": f"images/shapes-{i}.png"} for i in range(3)]
    assert "3 images, 0 with given regions" in result.stderr


def test_a_manifest_becomes_a_manifest_that_says_the_same(sca_manifest, tmp_path):
    mask = {"size": [2, 2], "counts": [1, 2, 1]}
    given = [
        {
            "uri": "a.jpg",
            "image_id": "seven",
            "boxes_xyxy": [[0, 0, 2, 2], None],
            "points": [None, [[1, 1], [0, 0]]],
            "point_labels": [None, [1, 0]],
            "masks_rle": [mask, None],
            "prompt_ids": ["x", None],
            "references": [["a"], ["b", "c"]],
            "camera": "left",
        },
        {"uri": "b.jpg", "image_id": "eight", "boxes_xyxy": []},
        {"uri": "c.jpg", "image_id": "nine"},
    ]
    first = tmp_path / "first.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in given))
    sca_manifest("build", "first.jsonl", "-o", "second.jsonl")
    plans = [make_plan([read_manifest(name)]) for name in ("first.jsonl", "second.jsonl")]
    assert plans[0].frame.equals(plans[1].frame)


@pytest.mark.parametrize(
    ("source", "name"),
    [("images", "images"), ("images/*.png", "images"), ("images/shapes-*", "shapes-")],
)
def test_the_manifest_is_named_after_its_source(
    sca_manifest, shapes_images, tmp_path, source, name
):
    sca_manifest("build", source)
    assert len(rows(tmp_path / f"{name}.jsonl")) == 3


def test_given_numbers_stay_numbers(sca_manifest, tmp_path):
    (tmp_path / "ids.csv").write_text("uri,image_id\na.jpg,12\nb.jpg,5\n")
    sca_manifest("build", "ids.csv", "-o", "ids.jsonl")
    assert [row["image_id"] for row in rows(tmp_path / "ids.jsonl")] == [12, 5]


def test_standard_input_is_a_source(sca_manifest, tmp_path):
    sca_manifest("build", "-", stdin='{"uri": "a.jpg"}\n')
    assert rows(tmp_path / "manifest.jsonl") == [{"uri": str(tmp_path / "a.jpg")}]


# --- check


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_every_problem_is_named_with_its_line(sca_manifest, image, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    lines = [
        '{"uri": "a.png", "image_id": 1, "boxes_xyxy": [[0, 0, 9, 9]], "references": ["x"]}',
        '{"uri": "gone.png", "image_id": 2}',
        "",
        '{"uri": "a.png", "image_id": 3, "boxes_xyxy": [[5, 0, 1, 1]]}',
        "not json",
        '{"uri": "a.png", "image_id": 4, "boxes_xyxy": [[50, 0, 60, 1], [-1, 0, 41, 30]]}',
        '{"uri": "a.png", "image_id": 5, "width": 30, "height": 40}',
        '{"uri": "text.png", "image_id": 6}',
        '{"uri": "a.png", "image_id": 1}',
        '{"uri": "https://example.com/a.png", "image_id": 7}',
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    out = sca_manifest("check", "m.jsonl", code=1).stdout
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert [text.split("line ")[1][0] for text in problems] == list("2456789")
    assert "no file" in problems[0]
    assert "x1 < x0" in problems[1]
    assert "invalid JSON on line 5" in problems[2]
    assert "box 0 [50, 0, 60, 1] lies outside the image, 40 x 30" in problems[3]
    assert "say 30 x 40" in problems[4]
    assert "is not an image" in problems[5]
    assert "1 stands already in line 1" in problems[6]
    assert "note, boxes that reach over an edge: 1" in out
    assert "note, images at a URL, not looked for: 1" in out
    assert out.startswith("m.jsonl: 7 rows, 2 with given regions; 3 regions, 1 references")
    assert out.endswith("Problems: 7\n")


def test_a_good_manifest_exits_with_0_in_every_format(sca_manifest, image, tmp_path):
    from sca_batch.manifests.write import write_manifest

    row = {"uri": "a.png", "image_id": 1, "boxes_xyxy": [[0, 0, 40, 30]], "width": 40, "height": 30}
    for name in ("m.jsonl", "m.parquet"):
        write_manifest([row], tmp_path / name)
    (tmp_path / "m.csv").write_text('uri,boxes_xyxy\na.png,"[[0, 0, 40, 30]]"\n')
    (tmp_path / "m.txt").write_text("a.png\n")
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
    (tmp_path / "m.json").write_text(json.dumps(document))
    for suffix in ("jsonl", "parquet", "csv", "txt", "json"):
        assert "No problems." in sca_manifest("check", f"m.{suffix}").stdout


def test_a_box_without_area_is_noted_only(sca_manifest, image, tmp_path):
    row = {"uri": "a.png", "boxes_xyxy": [[40, 3, 40, 9], [3, 3, 3, 9]]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    out = sca_manifest("check", "m.jsonl", code=1).stdout
    assert "note, boxes without width or height: 2" in out
    content = json.loads(sca_manifest("check", "m.jsonl", "--json", code=1).stdout)
    assert content["notes"] == {"boxes without width or height": 2}
    assert "Problems: 1" in out  # the one on the border behind the last pixel


def test_files_are_not_looked_at_unless_asked(sca_manifest, tmp_path):
    (tmp_path / "m.txt").write_text("gone.jpg\n")
    assert "no file" in sca_manifest("check", "m.txt", "--check-files", "exists", code=1).stdout
    assert "No problems." in sca_manifest("check", "m.txt", "--check-files", "none").stdout


def test_a_manifest_full_of_problems_is_not_read_to_its_end(sca_manifest, tmp_path):
    (tmp_path / "m.jsonl").write_text("oops\n" * 5000)
    content = json.loads(sca_manifest("check", "m.jsonl", "--json", code=1).stdout)
    assert content["problem_count"] == 101
    assert content["rows"] == 0
    assert len(content["problems"]) == 20


def test_an_empty_manifest_is_a_problem(sca_manifest, tmp_path):
    (tmp_path / "m.jsonl").write_text("\n")
    assert "no rows" in sca_manifest("check", "m.jsonl", code=1).stdout


def test_a_crowd_from_standard_tools_checks_clean(sca_manifest, coco):
    sca_manifest("build", "--from", "coco", coco, "--split", "val", "-o", "m.parquet")
    content = json.loads(sca_manifest("check", "m.parquet", "--json").stdout)
    assert (content["rows"], content["regions"], content["files_seen"]) == (1, 1, 1)
