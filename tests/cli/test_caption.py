"""The command as a person runs it: real files, real processes, exit codes and messages."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sca_batch.cli import main

ROOT = Path(__file__).parents[2]
# What the little shapes model needs to find anything; the defaults are for real SAM.
SMALL = {
    "--points-per-side": "6",
    "--pred-iou-thresh": "0.5",
    "--stability-score-thresh": "0.7",
    "--stability-score-offset": "0.5",
    "--num-beams": "1",
    "--max-new-tokens": "5",
}


@dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture
def sca(tmp_path, shapes_folder, monkeypatch, capfd):
    """Runs `sca ARGUMENTS` in a folder; `caption` gets the shapes model and its settings.

    `plain` leaves the settings out.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, stdin=None, plain=False):
        typed = list(map(str, arguments))
        if typed[0] == "caption" and "--model" not in typed:
            typed += ["--model", str(shapes_folder)]
        if typed[0] == "caption" and not plain:
            typed += [a for pair in SMALL.items() if pair[0] not in typed for a in pair]
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(typed)
        out, err = capfd.readouterr()
        assert ended.value.code == code, err
        assert "Traceback" not in err
        return Done(out, err)

    return run


def test_a_folder_becomes_a_dataset_that_other_tools_open(sca, shapes_images, tmp_path):
    done = sca("caption", "images")
    assert done.stdout == ""
    assert "Captioned 3 images" in done.stderr
    out = tmp_path / "images-captions"
    coco = COCO(out / "captions.json")
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(coco.getImgIds()) == 3
    assert len(annotations) > 3
    for annotation in annotations:
        rle = coco.annToRLE(annotation)
        assert coco_mask.area(rle) == annotation["area"]
        assert coco_mask.toBbox(rle).tolist() == annotation["bbox"]
    table = pl.read_parquet(out / "shard-*.parquet")
    assert table["regions"].list.len().sum() == len(annotations)
    run = json.loads((out / "run.json").read_text())
    assert run["fingerprint"]["num_beams"] == 1


def test_the_same_command_again_does_nothing_and_says_so(sca, shapes_images):
    sca("caption", "images")
    assert "3 images were done before" in sca("caption", "images").stderr


def test_options_that_are_left_out_take_the_runs(sca, shapes_images, shapes_folder):
    sca("caption", "images", "--limit", "2")
    done = sca("caption", "images", "--model", shapes_folder)
    assert "2 images were done before" in done.stderr


def test_another_setting_stops_before_any_work(sca, shapes_images, tmp_path):
    sca("caption", "images")
    before = (tmp_path / "images-captions/captions.json").read_bytes()
    done = sca("caption", "images", "--prompt", "point", code=2)
    assert "prompt was 'box', is now 'point'" in done.stderr
    assert (tmp_path / "images-captions/captions.json").read_bytes() == before
    done = sca("caption", "images", "--prompt", "point", "--overwrite")
    assert "Captioned 3 images" in done.stderr


def test_one_bad_image_is_a_row_and_exit_code_1(sca, shapes_images, tmp_path):
    (shapes_images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    (shapes_images / "empty.png").touch()
    done = sca("caption", "images", code=1)
    assert "2 failed" in done.stderr
    rows = pl.read_parquet(tmp_path / "images-captions/shard-*.parquet")
    codes = dict(rows.select("key", "error_code").iter_rows())
    assert codes["empty.png"] == "empty_file"
    assert codes["broken.jpg"] in {"not_an_image", "decode", "truncated"}
    assert rows.filter(pl.col("status") == "ok").height == 3
    sca("caption", "images", "--max-failures", "2")


def test_a_manifest_with_boxes_keeps_order_and_ids(sca, shapes_images, tmp_path):
    row = {
        "uri": "images/shapes-0.png",
        "image_id": 77,
        "boxes_xyxy": [[10, 10, 60, 50], [0, 0, 150, 110]],
        "prompt_ids": ["a", "b"],
        "photographer": "nobody",
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    done = sca("caption", "m.jsonl", "--format", "jsonl", "-o", "-")
    (line,) = done.stdout.splitlines()
    got = json.loads(line)
    assert got["image_id"] == 77
    assert json.loads(got["extra"]) == {"photographer": "nobody"}
    assert [r["prompt_id"] for r in got["regions"]] == ["a", "b"]
    assert [r["prompt_box_xyxy"] for r in got["regions"]] == row["boxes_xyxy"]


def test_lines_and_shards_have_the_same_fields(sca, shapes_images, tmp_path):
    lines = sca("caption", "images", "--format", "jsonl", "-o", "-").stdout.splitlines()
    sca("caption", "images")
    rows = pl.read_parquet(tmp_path / "images-captions/shard-*.parquet").to_dicts()
    assert [json.loads(line).keys() for line in lines] == [row.keys() for row in rows]
    assert [json.loads(line)["regions"][0]["caption"] for line in lines] == [
        row["regions"][0]["caption"] for row in rows
    ]


def test_a_manifest_on_standard_input(sca, shapes_images):
    done = sca(
        "caption", "-", "--format", "jsonl", "-o", "-", stdin='{"uri": "images/shapes-1.png"}\n'
    )
    assert json.loads(done.stdout)["width"] == 90


def test_a_dry_run_writes_nothing(sca, shapes_images, tmp_path):
    done = sca("caption", "images", "--dry-run")
    assert "Would caption 3 images" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


def test_a_model_may_have_its_own_defaults_for_automatic_masks(sca, shapes_images, tmp_path):
    own = "14 x 14 points, predicted IoU > 0.5, stability >= 0.9"
    dry = ("caption", "images", "--dry-run", "--model", "sca-tiny")
    assert own in sca(*dry, plain=True).stdout
    given = sca(*dry, "--pred-iou-thresh", "0.7", plain=True)
    assert "14 x 14 points, predicted IoU > 0.7, stability >= 0.9" in given.stdout
    assert "--points-per-side 14 --pred-iou-thresh 0.5" in sca("model", "info", "sca-tiny").stdout


def test_a_model_that_asks_for_what_sam_does_not_have_is_refused(sca, shapes_images, shapes_folder):
    spoiled = Path("spoiled")
    shutil.copytree(shapes_folder, spoiled)
    config = json.loads((spoiled / "config.json").read_text())
    for wrong, expected in (
        ({"points": 3}, "automatic_masks names 'points'; expected some of box_nms_thresh"),
        ({"points_per_side": 0}, "--points-per-side is 0"),
    ):
        (spoiled / "config.json").write_text(json.dumps(config | {"automatic_masks": wrong}))
        done = sca("caption", "images", "--dry-run", "--model", "spoiled", code=2, plain=True)
        assert expected in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["nowhere"], "nowhere: no such file or folder", id="missing source"),
        pytest.param(["images", "-o", "images/out"], "inside the source", id="output inside"),
        pytest.param(["images", "--format", "xml"], "expected some of", id="unknown format"),
        pytest.param(["images", "--points-per-side", "0"], "--points-per-side is 0", id="grid"),
        pytest.param(["images", "--captions-per-region", "4"], "--num-beams 4", id="beams"),
        pytest.param(["images", "--regions", "given"], "add them to the manifest", id="no regions"),
        pytest.param(["images", "--model", "sca-tinny"], "Did you mean sca-tiny", id="model"),
        pytest.param(["bad.jsonl"], "bad.jsonl, line 2: boxes_xyxy[0]", id="box"),
        pytest.param(["--no-such-option", "images"], "--no-such-option", id="option"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_to_type_next(
    sca, shapes_images, tmp_path, arguments, expected
):
    (tmp_path / "bad.jsonl").write_text(
        '{"uri": "images/shapes-0.png"}\n'
        '{"uri": "images/shapes-1.png", "boxes_xyxy": [[40, 10, 12, 90]]}\n'
    )
    done = sca("caption", *arguments, code=2)
    assert expected in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "images"]


def test_draw_makes_a_picture_of_one_image(sca, shapes_images, tmp_path):
    sca("caption", "images")
    sca("draw", "images-captions", "shapes-1.png", "-o", "picture.png")
    from PIL import Image

    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.height >= 640
        assert len(picture.getcolors(maxcolors=1 << 24)) > 20
    done = sca("draw", "images-captions", "nobody.png", code=2)
    assert "no image nobody.png" in done.stderr


def test_doctor_names_devices_and_packages(sca):
    from sca_batch.cli.doctor import examine

    report = json.loads(sca("doctor", "--json", code=1 if examine().problems else 0).stdout)
    assert report["packages"]["torch"]
    assert any(device.startswith("cpu") for device in report["devices"])


@pytest.fixture
def narrow_model(tmp_path, shapes_folder):
    """The shapes model, saying that the images of its domain have captions as sure as this."""
    import shutil

    def make(least_logprob: float) -> Path:
        folder = tmp_path / f"narrow{least_logprob:g}"
        shutil.copytree(shapes_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        config["domain"] = {
            "name": "coloured shapes",
            "least_logprob": least_logprob,
            "share_below": 0.02,
            "elsewhere": "somebody/photographs",
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("output", [["-o", "out"], ["--format", "jsonl", "-o", "-"]])
def test_a_narrow_model_says_once_that_images_are_not_of_its_domain(
    sca, shapes_images, narrow_model, tmp_path, caplog, output
):
    sca("caption", "images", "--model", narrow_model(0.0), *output)
    said = [r.getMessage() for r in caplog.records if "is outside of what" in r.getMessage()]
    assert len(said) == 1
    assert "coloured shapes" in said[0]
    assert "--model somebody/photographs" in said[0]
    if output[-1] == "out":
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        assert summary["images_outside_domain"] == 3


def test_a_narrow_model_is_silent_about_images_of_its_domain(
    sca, shapes_images, narrow_model, tmp_path, caplog
):
    sca("caption", "images", "--model", narrow_model(-100.0), "-o", "out")
    assert not any("is outside of what" in r.getMessage() for r in caplog.records)
    assert json.loads((tmp_path / "out/summary.json").read_text())["images_outside_domain"] == 0


def test_a_model_that_names_no_domain_has_none(sca, shapes_images, tmp_path):
    sca("caption", "images", "-o", "out")
    assert "images_outside_domain" not in json.loads((tmp_path / "out/summary.json").read_text())
