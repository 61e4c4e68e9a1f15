"""TensorRT without a GPU: the real builder, and running against a stand-in for the context."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch

from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.plans import PlanFacts
from sca_batch.engines.recipes import Recipe
from sca_batch.engines.tensorrt import (
    Execution,
    TensorRtEngine,
    build_plan,
    deserialize,
    profile_for,
    target_capabilities,
)
from sca_batch.errors import ScaError

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
        TensorRtEngine(tmp_path / "graph.plan", facts_of("encoder", {}, backend))


def facts_of(graph, shapes, backend="tensorrt-rtx"):
    return PlanFacts(graph, backend, "1", "fp32", "w", "g", "p", 1, shapes=shapes)


class StandInContext:
    """Runs the ONNX file on the addresses it is given, as a real context would the plan."""

    def __init__(self, path, profile):
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._profile, self._shape, self._address, self._found = profile, {}, {}, {}
        self._calls = 0

    def set_input_shape(self, name, shape):
        least, _, most = self._profile[name]
        self._shape[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name, address):
        self._address[name] = address
        return True

    def infer_shapes(self):
        inputs = {i.name: self._at(i) for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        self._found = dict(zip(names, self._session.run(None, inputs), strict=True))
        return []

    def get_tensor_shape(self, name):
        return self._found[name].shape

    def execute_async_v3(self, stream):
        assert stream == 7
        self._calls += 1
        for name, value in self._found.items():
            whole = np.ascontiguousarray(value)
            ctypes.memmove(self._address[name], whole.ctypes.data, whole.nbytes)
        return True

    def _at(self, item):
        dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[item.type]
        shape = self._shape[item.name]
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = (ctypes.c_char * size).from_address(self._address[item.name])
        return np.frombuffer(buffer, dtype).reshape(shape)


def test_the_stand_in_offers_nothing_that_the_real_context_lacks():
    offered = [name for name in vars(StandInContext) if not name.startswith("_")]
    assert len(offered) == 5
    for name in offered:
        assert callable(getattr(trt.IExecutionContext, name))
    for owner, names in {
        trt.ICudaEngine: ["create_execution_context", "create_runtime_config"],
        trt.IRuntimeConfig: ["cuda_graph_strategy"],
        trt.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE"],
        trt.Runtime: ["deserialize_cuda_engine"],
    }.items():
        for name in names:
            assert hasattr(owner, name), f"{owner} has no {name}"


@pytest.mark.parametrize("graph", GRAPHS)
def test_running_in_pieces_gives_what_torch_gives(shapes_model, exported, graph):
    profile = profile_for(shapes_model, graph, SMALL)
    facts = facts_of(graph, {name: [list(s) for s in triple] for name, triple in profile.items()})
    context = StandInContext(exported(graph), profile)
    execution = Execution(context, facts, stream=lambda: 7)
    # 7 regions of 6 images, built for at most 4 and 4; 3 encoder images, built for 2.
    images = 3 if graph == "encoder" else 6
    inputs = example_inputs(shapes_model, graph, images=images, regions=7)
    expected = build_graph(shapes_model, graph)(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(execution(*inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert context._calls == 2


def test_a_prompt_longer_than_the_profile_names_what_to_rebuild(shapes_model, exported):
    profile = profile_for(shapes_model, "decoder", SMALL)
    facts = facts_of("decoder", {name: list(triple) for name, triple in profile.items()})
    execution = Execution(StandInContext(exported("decoder"), profile), facts, stream=lambda: 7)
    inputs = example_inputs(shapes_model, "decoder", regions=1, prompt_tokens=9)
    with pytest.raises(ScaError, match=r"sparse of shape \(1, 9, 32\) is beyond .*prompt_tokens"):
        execution(*inputs)
