"""The bundled model by OpenVINO: what torch says on the sample, whatever its weights are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sca_batch.boxes import rle_to_mask
from sca_batch.cli import main
from sca_batch.engines.graphs import GRAPHS
from sca_batch.engines.plans import read_plans
from sca_batch.engines.recipes import Recipe, read_recipe

pytest.importorskip("openvino", reason="pip install '.[cpu]'")

SAMPLE = Path(__file__).parents[2] / "manifests/sample-regions.jsonl"
# Where the best tokens are closer than kernels round, another caption is no mistake.
TIE = 1e-3


@pytest.fixture(scope="module")
def tiny():
    from sca_batch.model.load import load_model

    return load_model("sca-tiny", device="cpu")


@pytest.fixture(scope="module")
def plans(tiny, tmp_path_factory):
    """All four graphs for OpenVINO in float32; each passed the gate."""
    from sca_batch.checks.engines import build_checked
    from sca_batch.model.checkpoint import weights_digest

    folder = tmp_path_factory.mktemp("plans")
    weights = weights_digest(tiny)
    for graph in GRAPHS:
        built = build_checked(
            tiny, graph, Recipe(backend="openvino"), folder, weights=weights, model_name="sca-tiny"
        )
        assert not built.missed
        assert built.facts.error["relative_error"] < 1e-5
    return folder


@dataclass(frozen=True)
class Described:
    key: tuple[str, int]
    caption: str
    logprob: float
    mask: np.ndarray


def described(folder):
    rows = pl.read_parquet(folder / "shard-*.parquet").explode("regions").unnest("regions")
    return [
        Described(
            (row["file_name"], row["region_id"]),
            row["caption"],
            row["caption_logprob"],
            rle_to_mask(row["segmentation"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def test_openvino_describes_the_sample_as_torch_does(plans, tmp_path, capfd):
    for engine in ("torch", "openvino"):
        with pytest.raises(SystemExit) as ended:
            main(["caption", str(SAMPLE), "--engine", engine, "--engine-dir", str(plans), "-o",
                  str(tmp_path / engine), "--format", "parquet"])  # fmt: skip
        assert ended.value.code == 0, capfd.readouterr().err
    ours, theirs = described(tmp_path / "openvino"), described(tmp_path / "torch")
    assert len(ours) > 40
    assert [region.key for region in ours] == [region.key for region in theirs]
    ties = 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=TIE)
        ties += mine.caption != other.caption
        # A pixel whose logit is zero may be on either side.
        assert np.mean(mine.mask != other.mask) < 1e-4
    assert ties <= 1


@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorrt_rtx_builds_the_bundled_model(tiny, plans, tmp_path, graph):
    pytest.importorskip("tensorrt_rtx", reason="pip install '.[trt-rtx]'")
    from sca_batch.engines.tensorrt import build_plan, profile_for

    [onnx] = [path for path, facts in read_plans(plans) if facts.graph == graph]
    profile = profile_for(tiny, graph, read_recipe("tiny"))
    assert build_plan("tensorrt-rtx", onnx, tmp_path / "tiny.plan", profile) > 0
    assert (tmp_path / "tiny.plan").read_bytes()[:4] == b"vtrt"


def test_int8_is_compared_on_images_that_it_was_not_calibrated_with(tiny, plans, tmp_path):
    from sca_batch.checks.engines import build_checked, misses

    recipe = read_recipe("cpu-int8")
    built = build_checked(tiny, "encoder", recipe, tmp_path, weights="w" * 64, model_name="tiny")
    facts = built.facts
    assert facts.calibration["images"] == 5
    assert len(facts.calibration["sha256"]) == 64
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert facts.error["captions_compared"] == sum(len(row["boxes_xyxy"]) for row in rows[1::2])
    [exact] = [facts for _, facts in read_plans(plans) if facts.graph == "encoder"]
    assert facts.plan_bytes < 0.5 * exact.plan_bytes
    # Eight bits: no float32 file by another name, and no noise either.
    assert 1e-3 < facts.error["relative_error"] < 1
    assert facts.error["mean_mask_iou"] > 0.8
    # Whether these weights bear it is the gate's to say.
    assert list(built.missed) == misses(facts)
    assert (built.path is None) == bool(built.missed)
