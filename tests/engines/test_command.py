"""`sca engine`, and `sca caption` with what it built."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import polars as pl
import pytest

from sca_batch.cli import main
from sca_batch.engines.graphs import GRAPHS
from sca_batch.errors import ScaError


@dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture
def sca(tmp_path, monkeypatch, capfd, caplog, shapes_folder):
    """Runs `sca ARGUMENTS` in a folder; `caption` gets the shapes model and its settings."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "sca_batch")
    small = ["--points-per-side", "6", "--pred-iou-thresh", "0.5", "--num-beams", "1"]
    small += ["--stability-score-thresh", "0.7", "--stability-score-offset", "0.5"]

    def run(*arguments, code=0):
        typed = list(map(str, arguments))
        if typed[0] == "caption":
            typed += ["--model", str(shapes_folder), *small]
        capfd.readouterr()
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main(typed)
        out, err = capfd.readouterr()
        assert ended.value.code == code, err
        return Done(out, err + caplog.text)

    return run


@pytest.fixture(scope="module")
def plans(tmp_path_factory, plan_of):
    """All four plans of the shapes model."""
    folder = tmp_path_factory.mktemp("plans")
    for graph in GRAPHS:
        plan_of(folder, graph)
    return folder


def described(folder):
    rows = pl.read_parquet(folder / "shard-*.parquet").explode("regions").unnest("regions")
    return rows.select("file_name", "caption", "segmentation").rows()


def test_openvino_gives_the_masks_and_captions_of_torch(sca, shapes_images, tmp_path, plans):
    sca("caption", "images", "-o", "by-torch", "--engine", "torch", "--format", "parquet")
    done = sca("caption", "images", "-o", "by-openvino", "--engine", "openvino",
               "--engine-dir", plans, "--format", "parquet")  # fmt: skip
    assert "Engine: openvino fp32 for encoder, decoder, upscale, mixer" in done.stderr
    ours, theirs = described(tmp_path / "by-openvino"), described(tmp_path / "by-torch")
    assert len(ours) > 3
    assert ours == theirs
    run = json.loads((tmp_path / "by-openvino/run.json").read_text())
    assert run["fingerprint"]["engine"] == "openvino-fp32"


def test_auto_finds_the_plans_and_a_run_keeps_what_it_found(sca, shapes_images, plans, tmp_path):
    done = sca("caption", "images", "--limit", "1", "--engine-dir", plans)
    assert "Engine: openvino fp32" in done.stderr
    changed = sca("caption", "images", "--limit", "1", "--engine", "torch", code=2)
    assert "engine" in changed.stderr
    gone = sca("caption", "images", "--limit", "1", "--engine-dir", "nowhere", code=2)
    assert "no fp32 plan of this model in nowhere. Build it: sca engine build" in gone.stderr


def test_without_plans_auto_is_torch_and_says_so(sca, shapes_images):
    done = sca("caption", "images", "--limit", "1")
    assert "Engine: torch: no plans in engines" in done.stderr


def test_a_plan_is_built_and_used(sca, shapes_images, tmp_path, shapes_folder):
    built = sca("engine", "build", "--model", shapes_folder, "--set", "graphs=upscale")
    assert "upscale: export " in built.stderr
    assert "mask IoU 1.0000; kept engines/upscale-" in built.stderr
    used = sca("caption", "images", "--limit", "1")
    assert "Engine: openvino fp32 for upscale; torch for encoder, decoder, mixer" in used.stderr


def test_plans_are_listed_checked_and_timed(sca, plans, shapes_folder):
    listed = sca("engine", "list", "--engine-dir", plans).stdout
    assert listed.count("usable here") == 4
    checked = sca("engine", "check", "--model", shapes_folder, "--engine-dir", plans).stdout
    assert checked.count(": ok") == 4
    timed = sca("engine", "bench", "--model", shapes_folder, "--engine-dir", plans,
                "--batch", "1", "--repeats", "1").stdout  # fmt: skip
    assert timed.count("openvino") == 4


def test_workers_after_the_first_take_what_it_found_and_say_nothing(
    sca, shapes_images, plan_of, tmp_path
):
    folder = tmp_path / "plans"
    upscale = plan_of(folder, "upscale")
    plan_of(folder, "decoder", version="2020.1")
    done = sca("caption", "images", "--engine-dir", folder, "--workers", "2", "--shard-size", "1")
    assert done.stderr.count("Engine: openvino fp32 for upscale; torch for ") == 1
    assert done.stderr.count("Not used: decoder-") == 1
    run = json.loads((tmp_path / "images-captions/run.json").read_text())
    assert run["settings"]["plans"] == [upscale.name]


def test_a_worker_that_cannot_have_the_runs_plans_is_an_error(shapes_model, plan_of, tmp_path):
    from sca_batch.engines import use_engines

    path = plan_of(tmp_path, "upscale")
    chosen = use_engines(shapes_model, "auto", tmp_path, precisions=("fp32",))
    shapes_model.engines = {}
    assert chosen.plans == (path.name,)
    path.unlink()
    with pytest.raises(ScaError, match="no fp32 plan of this model"):
        use_engines(shapes_model, chosen.engine, tmp_path, precisions=("fp32",), only=chosen.plans)


def test_int8_that_the_model_does_not_bear_is_not_kept(sca, shapes_images, shapes_folder, tmp_path):
    """This model's captions are those of random weights, and hang on every digit."""
    done = sca("engine", "build", "--model", shapes_folder, "--precision", "int8",
               "--calibration", "images", code=1)  # fmt: skip
    # Two of three images calibrate; the other one has three boxes.
    assert " of 3 captions differ; NOT kept: encoder: " in done.stderr
    assert "calibrate on more images like yours" in done.stderr
    assert list((tmp_path / "engines").iterdir()) == []


def test_int8_is_asked_for_and_never_taken_by_itself(sca, shapes_images, plan_of, tmp_path):
    folder = tmp_path / "engines"
    for graph in GRAPHS:
        plan_of(folder, graph)
    plan_of(folder, "encoder", precision="int8")
    plain = sca("caption", "images", "--limit", "1", "-o", "plain")
    assert "Engine: openvino fp32 for encoder, decoder, upscale, mixer" in plain.stderr
    asked = sca("caption", "images", "--limit", "1", "-o", "asked", "--int8")
    assert "Engine: openvino int8 for encoder; fp32 for decoder, upscale, mixer" in asked.stderr
    run = json.loads((tmp_path / "asked/run.json").read_text())
    assert run["fingerprint"]["engine"] == "openvino-int8+fp32"
    again = sca("caption", "images", "--limit", "1", "-o", "asked")
    assert "Engine: openvino int8 for encoder; fp32 for" in again.stderr
    missing = sca("caption", "images", "-o", "none", "--int8", "--engine", "onnx", code=2)
    assert "no int8 plan of the encoder in engines. Build it: sca engine build" in missing.stderr
    assert "--backend onnx --precision int8" in missing.stderr
    torch = sca("caption", "images", "-o", "none", "--int8", "--engine", "torch", code=2)
    assert "--int8 with --engine torch" in torch.stderr


def test_int8_that_describes_too_much_otherwise_is_not_kept():
    from sca_batch.checks.engines import misses
    from sca_batch.engines.plans import PlanFacts

    def missed(**error):
        good = {"relative_error": 0.1, "cosine": 0.99, "mean_mask_iou": 0.98, "captions": 4.0,
                "captions_compared": 20.0}  # fmt: skip
        facts = PlanFacts("encoder", "onnx", "1", "int8", "w", "g", "p", 1, error=good | error)
        return misses(facts)

    assert missed() == []
    assert "relative error 2.1e-01, at most 2e-01" in missed(relative_error=0.21)[0]
    assert "mean mask IoU 0.940, at least 0.95" in missed(mean_mask_iou=0.94)[0]
    assert "5 of 20 captions changed, at most 20%" in missed(captions=5.0)[0]


def test_a_plan_that_misses_its_tolerance_is_not_kept(sca, tmp_path, shapes_folder):
    done = sca("engine", "build", "--model", shapes_folder, "--backend", "onnx",
               "--precision", "fp16", "--set", "graphs=upscale", "--set", "tolerance=1e-6",
               code=1)  # fmt: skip
    assert "upscale: relative error" in done.stderr
    assert "NOT kept" in done.stderr
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_dry_run_builds_nothing(sca, tmp_path):
    done = sca("engine", "build", "--recipe", "vit-h-fp16", "--set", "regions=1,8,16", "--dry-run")
    assert "encoder, decoder, upscale, mixer of sca-tiny with tensorrt-rtx in fp16" in done.stdout
    assert "regions: 1 to 16, fastest at 8" in done.stdout
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "none"], "no recipe 'none': expected a .toml file or one of cpu-bf16, cpu-"),
        (["--precision", "fp16"], "precision 'fp16' with backend openvino: expected fp32 or bf16"),
        (["--set", "regions=5,1,1"], "regions [5, 1, 1]: expected least, usual and most"),
        (["--set", "width=3"], "--set width: this recipe has no width; one of backend, "),
        (["--set", "graphs=decode"], "graphs ['decode']: expected some of encoder, decoder"),
        (["--set", "keep_fp32=a"], "keep_fp32 with precision fp32: it belongs to fp16"),
        (["--precision", "bf16", "--set", "keep_fp32=a"], "it belongs to fp16 and TensorRT's bf16"),
        (
            ["--precision", "int8", "--set", "graphs=encoder,mixer"],
            "for the encoder, not for mixer",
        ),
        (["--precision", "int8", "--backend", "tensorrt-rtx"], "expected fp32 or fp16 or bf16"),
        (["--calibration", "images"], "--calibration with precision fp32: it belongs to int8"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(sca, arguments, expected):
    assert expected in sca("engine", "build", *arguments, "--dry-run", code=2).stderr


def test_the_recipes_are_all_readable(sca):
    from sca_batch.engines.recipes import read_recipe, recipe_names

    assert {"cpu-fp32", "cpu-bf16", "vit-h-fp16", "tiny"} <= set(recipe_names())
    assert all(read_recipe(name).graphs for name in recipe_names())
    assert read_recipe("cpu-int8").parts == read_recipe(None, ["precision=int8"]).parts
    assert read_recipe(None).parts == tuple(GRAPHS)
