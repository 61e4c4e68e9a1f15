"""What needs an NVIDIA GPU. Not yet run on one: `benchmarks/gpu.sh` is how to."""

from __future__ import annotations

import pytest
import torch

from sca_batch.engines import use_engines
from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.plans import read_plans
from sca_batch.engines.recipes import Recipe

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(shapes_folder):
    from sca_batch.model.zoo import load_model

    return load_model(shapes_folder, device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def backend():
    """The flavour that is installed and serves this GPU; TensorRT-RTX first."""
    from sca_batch.engines.tensorrt import RTX_CAPABILITIES

    major, minor = torch.cuda.get_device_capability()
    if f"sm{major}{minor}" in RTX_CAPABILITIES:
        pytest.importorskip("tensorrt_rtx")
        return "tensorrt-rtx"
    pytest.importorskip("tensorrt")
    return "tensorrt"


@pytest.fixture(scope="module")
def plans(on_gpu, backend, tmp_path_factory):
    """All four plans, built and checked on this GPU; the small sizes are split into pieces."""
    from sca_batch.checks.engines import build_checked
    from sca_batch.model.checkpoint import weights_digest

    folder = tmp_path_factory.mktemp("plans")
    # TensorRT multiplies in TF32 where it likes: three digits.
    recipe = Recipe(backend=backend, images=(1, 1, 2), regions=(1, 4, 4), tolerance=5e-3)
    weights = weights_digest(on_gpu)
    for graph in GRAPHS:
        built = build_checked(on_gpu, graph, recipe, folder, weights=weights, model_name="shapes")
        assert not built.missed
        assert built.facts.executed
    return folder


def test_float32_on_a_gpu_is_float32_on_a_cpu(on_gpu, shapes_model):
    inputs = example_inputs(shapes_model, "mixer")
    expected = build_graph(shapes_model, "mixer")(*inputs)
    found = build_graph(on_gpu, "mixer")(*(value.cuda() for value in inputs))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.tensorrt
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_plan_runs_in_pieces_and_on_another_stream(on_gpu, plans, graph):
    from sca_batch.engines import load_plan

    [(path, facts)] = [item for item in read_plans(plans) if item[1].graph == graph]
    engine = load_plan(path, facts)
    inputs = example_inputs(on_gpu, graph, images=5, regions=11)
    module = build_graph(on_gpu, graph)
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            # Twice: CUDA graphs are captured the first time and replayed the second.
            found = [engine(*inputs) for _ in range(2)]
            expected = module(*inputs)
        stream.synchronize()
        expected = expected if isinstance(expected, tuple) else (expected,)
        for outputs in found:
            for ours, theirs in zip(outputs, expected, strict=True):
                error = (ours - theirs).norm() / theirs.norm()
                assert error < 5e-3


@pytest.mark.tensorrt
def test_caption_takes_the_plans(on_gpu, plans):
    chosen = use_engines(on_gpu, "tensorrt", plans, precisions=("fp32",))
    try:
        assert set(on_gpu.engines) == set(GRAPHS)
        assert chosen.engine == "tensorrt"
    finally:
        on_gpu.engines = {}
