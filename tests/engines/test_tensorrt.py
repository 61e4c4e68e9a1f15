"""TensorRT without a GPU: the real builder, and everything that it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sca_batch.engines.graphs import GRAPHS
from sca_batch.engines.plans import Machine, PlanFacts, tensorrt_flavour
from sca_batch.engines.recipes import Recipe
from sca_batch.engines.tensorrt import (
    TensorRtEngine,
    build_plan,
    deserialize,
    profile_for,
    target_capabilities,
)
from sca_batch.errors import MissingPackageError, ScaError

trt = pytest.importorskip("tensorrt_rtx", reason="pip install -e '.[dev]'")

SMALL = Recipe(backend="tensorrt-rtx", images=(1, 1, 2), regions=(1, 2, 4))
CPU = torch.device("cpu")


@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorrt_builds_every_graph_without_a_gpu(shapes_model, exported, tmp_path, graph):
    phases = []
    plan = tmp_path / "graph.plan"
    memory = build_plan(
        "tensorrt-rtx",
        exported(graph),
        plan,
        profile_for(shapes_model, graph, SMALL),
        on_phase=lambda name, step, steps: phases.append((name, step, steps)) or True,
    )
    assert plan.read_bytes()[:4] == b"vtrt"
    assert memory > 0
    assert phases
    # No driver: told, and not a crash.
    with pytest.raises(ScaError, match=r"does not take this plan: .*CUDA"):
        deserialize(plan, "tensorrt-rtx")


def test_a_build_can_be_stopped(shapes_model, exported, tmp_path):
    with pytest.raises(ScaError, match="cannot build it"):
        build_plan("tensorrt-rtx", exported("upscale"), tmp_path / "graph.plan",
                   profile_for(shapes_model, "upscale", SMALL),
                   on_phase=lambda *_: False)  # fmt: skip
    assert not (tmp_path / "graph.plan").exists()


def test_open_sizes_without_a_profile_are_the_librarys_error(exported, tmp_path):
    with pytest.raises(ScaError, match="no optimization profile has been defined"):
        build_plan("tensorrt-rtx", exported("upscale"), tmp_path / "graph.plan", {})


def test_what_is_no_onnx_is_the_parsers_error(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ScaError, match=r"bad\.onnx: tensorrt-rtx cannot read it: "):
        build_plan("tensorrt-rtx", tmp_path / "bad.onnx", tmp_path / "bad.plan", {})


def test_a_corrupt_plan_is_refused_by_the_library(tmp_path):
    (tmp_path / "corrupt.plan").write_bytes(b"vtrt" + bytes(200))
    with pytest.raises(ScaError, match=r"corrupt\.plan: tensorrt-rtx does not take this plan"):
        deserialize(tmp_path / "corrupt.plan", "tensorrt-rtx")


def test_capabilities_are_checked_before_anything_is_built():
    assert target_capabilities("tensorrt-rtx", ["sm89"], CPU) == ("sm89",)
    assert target_capabilities("tensorrt-rtx", [], CPU) == ()
    with pytest.raises(ScaError, match=r"TensorRT-RTX does not serve sm90 .* need --backend"):
        target_capabilities("tensorrt-rtx", ["sm90"], CPU)
    with pytest.raises(ScaError, match="tensorrt builds on the GPU that the plan is for"):
        target_capabilities("tensorrt", [], CPU)


def test_the_library_too_refuses_a_capability_that_it_does_not_serve(exported, tmp_path):
    for capability in ("sm90", "sm87"):
        with pytest.raises(ScaError, match=f"tensorrt-rtx does not build for {capability}"):
            build_plan("tensorrt-rtx", exported("upscale"), tmp_path / "graph.plan", {},
                       capabilities=[capability])  # fmt: skip


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_running_a_plan_without_a_gpu_is_an_error_and_no_crash(tmp_path, backend):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ScaError, match=r"graph\.plan: TensorRT plans run on CUDA devices"):
        TensorRtEngine(
            tmp_path / "graph.plan", PlanFacts("encoder", backend, "1", "fp32", "w", "g", "p", 1)
        )
    # Before the library is so much as loaded: without a driver the standard one crashes when used.
    assert "tensorrt" not in sys.modules


def test_the_flavour_that_is_not_installed_says_how_to_get_it(tmp_path):
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        (tmp_path / "graph.plan").write_bytes(b"")
        with pytest.raises(MissingPackageError, match=r"pip install '\.\[trt\]'"):
            deserialize(tmp_path / "graph.plan", "tensorrt")
    else:
        pytest.skip("standard TensorRT is installed")


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        pytest.param("cpu", "both", "tensorrt-rtx", id="no GPU"),
        pytest.param("sm75", "both", "tensorrt-rtx", id="T4"),
        pytest.param("sm89", "both", "tensorrt-rtx", id="L4"),
        pytest.param("sm120", "both", "tensorrt-rtx", id="RTX 5090"),
        pytest.param("sm89", "tensorrt", "tensorrt", id="L4, standard TensorRT only"),
        pytest.param("sm89", "neither", "tensorrt-rtx", id="L4, to be installed"),
        pytest.param("sm90", "both", "tensorrt", id="H100"),
        pytest.param("sm90", "tensorrt-rtx", "tensorrt", id="H100, the other flavour only"),
        pytest.param("sm100", "neither", "tensorrt", id="B200"),
    ],
)
def test_the_flavour_follows_the_gpu(capability, installed, expected):
    versions = {
        name: "1.0" if installed in (name, "both") else None
        for name in ("tensorrt", "tensorrt-rtx")
    }
    machine = Machine(capability, versions)
    assert tensorrt_flavour(machine) == expected
    assert Recipe(backend="gpu", precision="fp16").on(machine).backend == expected
    by_itself = "openvino" if capability == "cpu" else expected
    assert Recipe().on(machine).backend == by_itself


def test_attention_as_one_operator_is_what_the_builder_refuses_in_float32(tmp_path):
    """Why graphs are exported with opset 20 and attention written out."""
    import onnx
    from onnx import TensorProto, helper

    def graph_in(dtype):
        shape = [1, 4, "tokens", 32]
        file = tmp_path / "attention.onnx"
        names = ("query", "key", "value")
        body = helper.make_graph(
            [helper.make_node("Attention", names, ["read"])],
            "attention",
            [helper.make_tensor_value_info(name, dtype, shape) for name in names],
            [helper.make_tensor_value_info("read", dtype, shape)],
        )
        opset = [helper.make_opsetid("", 23)]
        onnx.save(helper.make_model(body, opset_imports=opset, ir_version=11), file)
        sizes = tuple((1, 4, n, 32) for n in (1, 16, 64))
        build_plan("tensorrt-rtx", file, tmp_path / "graph.plan", dict.fromkeys(names, sizes))

    graph_in(TensorProto.FLOAT16)
    with pytest.raises(ScaError, match="Attention operation was not supported by a dedicated"):
        graph_in(TensorProto.FLOAT)


def test_bfloat16_builds_and_is_compared_where_it_can_be_run(shapes_model, shapes_folder, tmp_path):
    from sca_batch.checks.engines import build_checked

    recipe = Recipe(backend="tensorrt-rtx", precision="bf16", images=(1, 1, 2), regions=(1, 2, 4))
    built = build_checked(
        shapes_model, "upscale", recipe, tmp_path, weights="w" * 64, model_name="shapes"
    )
    assert built.path.name.startswith("upscale-wwwwwwww-bf16-tensorrt-rtx")
    assert not built.facts.executed
    # bfloat16 has 8 bits: it would be 1e-7 if a float32 file had been compared.
    assert 1e-3 < built.facts.error["relative_error"] < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "least_mib"), [("encoder", 170), ("mixer", 40)])
def test_a_full_size_graph_is_exported_compared_and_built_in_half_precision(graph, least_mib):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "benchmarks/engine_builds.py", graph, "--sam", "vit-b"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    columns = [column.strip() for column in done.stdout.split("|")]
    plan_mib = float(re.fullmatch(r"(\d+) MiB", columns[5])[1])
    assert plan_mib > least_mib
    assert max(float(error) for error in columns[7].split(",")) < 2e-3
