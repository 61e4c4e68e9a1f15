"""Running plans: against a stand-in for TensorRT's context that runs the same ONNX file."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch

from sca_batch.engines.execution import Execution
from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.onnx import OnnxEngine
from sca_batch.engines.plans import PlanFacts
from sca_batch.engines.recipes import Recipe
from sca_batch.engines.tensorrt import RuntimeCache, profile_for, rtx_runtime_config
from sca_batch.errors import ScaError
from sca_batch.model.memory import GROW_AFTER

trt = pytest.importorskip("tensorrt_rtx", reason="pip install -e '.[dev]'")

SMALL = Recipe(backend="tensorrt-rtx", images=(1, 1, 2), regions=(1, 2, 4))
STREAM, CAPTURING = 7, 8


class StandInContext:
    """Runs the ONNX file on the addresses it is given, as a real context would the plan.

    On the stream `CAPTURING` runs are recorded and not executed, as on a stream that records a CUDA
    graph: a recorded run knows addresses and shapes, and nothing else.
    """

    def __init__(self, path, profile):
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._profile, self._shape, self._address, self._found = profile, {}, {}, {}
        self._sizes, self._recorded = [], []

    def set_input_shape(self, name, shape):
        least, _, most = self._profile[name]
        self._shape[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name, address):
        self._address[name] = address
        return True

    def infer_shapes(self):
        self._found = {name: v.shape for name, v in self._computed().items()}
        return []

    def get_tensor_shape(self, name):
        return self._found[name]

    def execute_async_v3(self, stream):
        if stream == CAPTURING:
            self._recorded.append((dict(self._shape), dict(self._address)))
            return True
        assert stream == STREAM
        self._sizes.append(self._shape[self._session.get_inputs()[-1].name][0])
        for name, value in self._computed().items():
            whole = np.ascontiguousarray(value)
            ctypes.memmove(self._address[name], whole.ctypes.data, whole.nbytes)
        return True

    def _computed(self):
        inputs = {i.name: self._at(i) for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, inputs), strict=True))

    def _at(self, item):
        dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[item.type]
        shape = self._shape[item.name]
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = (ctypes.c_char * size).from_address(self._address[item.name])
        return np.frombuffer(buffer, dtype).reshape(shape)

    def _capture(self, run):
        run(CAPTURING)
        recorded = self._recorded[-1]

        def replay():
            self._shape, self._address = map(dict, recorded)
            self.execute_async_v3(STREAM)

        return replay


class ShortOfMemory(StandInContext):
    """Has memory for so many regions or images; more is an allocation that really fails."""

    def __init__(self, path, profile, room):
        super().__init__(path, profile)
        self._room, self._tried = room, []

    def execute_async_v3(self, stream):
        size = self._shape[self._session.get_inputs()[-1].name][0]
        self._tried.append(size)
        if size > self._room:
            torch.empty(1 << 60)
        return super().execute_async_v3(stream)


class ShortOfMemoryAndQuiet(ShortOfMemory):
    """The same, told as TensorRT tells it: False, and a line in the log."""

    _reason = ""

    def execute_async_v3(self, stream):
        try:
            return super().execute_async_v3(stream)
        except RuntimeError:
            self._reason = "Error Code 1: Cuda Runtime (out of memory)"
            return False


def running(model, graph, exported, kind=StandInContext, *room, **named):
    profile = profile_for(model, graph, SMALL)
    shapes = {name: [list(s) for s in triple] for name, triple in profile.items()}
    facts = PlanFacts(graph, "tensorrt-rtx", "1", "fp32", "w", "g", "p", 1, shapes=shapes)
    context = kind(exported(graph), profile, *room)
    reason = {"reason": lambda: context._reason} if kind is ShortOfMemoryAndQuiet else {}
    capture = {"capture": context._capture} if named.get("captured") else {}
    return Execution(context, facts, stream=lambda: STREAM, **reason, **capture), context


def assert_as_torch(model, graph, inputs, outputs):
    expected = build_graph(model, graph)(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_stand_in_offers_nothing_that_the_real_context_lacks():
    offered = [name for name in vars(StandInContext) if not name.startswith("_")]
    assert len(offered) == 5
    for name in offered:
        assert callable(getattr(trt.IExecutionContext, name))
    for owner, names in {
        trt.ICudaEngine: ["create_execution_context", "create_runtime_config"],
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.IHostMemory: ["__buffer__"] if hasattr(trt.IHostMemory, "__buffer__") else ["nbytes"],
    }.items():
        for name in names:
            assert hasattr(owner, name), f"{owner} has no {name}"


@pytest.mark.parametrize("graph", GRAPHS)
def test_running_in_pieces_gives_what_torch_gives(shapes_model, exported, graph):
    execution, context = running(shapes_model, graph, exported)
    # 7 regions of 6 images, built for at most 4 and 4; 3 encoder images, built for 2.
    images = 3 if graph == "encoder" else 6
    inputs = example_inputs(shapes_model, graph, images=images, regions=7)
    assert_as_torch(shapes_model, graph, inputs, execution(*inputs))
    assert context._sizes == ([2, 1] if graph == "encoder" else [4, 3])


def test_a_prompt_longer_than_the_profile_names_what_to_rebuild(shapes_model, exported):
    execution, _ = running(shapes_model, "decoder", exported)
    inputs = example_inputs(shapes_model, "decoder", regions=1, prompt_tokens=9)
    with pytest.raises(ScaError, match=r"sparse of shape \(1, 9, 32\) is beyond .*prompt_tokens"):
        execution(*inputs)


def test_shapes_that_come_back_are_recorded_once_and_replayed(shapes_model, exported):
    execution, context = running(shapes_model, "mixer", exported, captured=True)
    embedding, sparse, image = example_inputs(shapes_model, "mixer", images=2, regions=3)
    asked, answers = [], []
    for i in range(4):
        inputs = (embedding + i, sparse.roll(i, 0), image)
        asked.append(tuple(value.clone() for value in inputs))
        answers.append(execution(*inputs))
        for value in inputs[:2]:
            value.zero_()  # its memory is the caller's, and is used again
    assert len(context._recorded) == 1
    fixed = {a for _, addresses in context._recorded for a in addresses.values()}
    assert not fixed & {value.data_ptr() for values in answers for value in values}
    # Earlier answers too: a replay must not write to what was handed out.
    for inputs, outputs in zip(asked, answers, strict=True):
        assert_as_torch(shapes_model, "mixer", inputs, outputs)
    other = example_inputs(shapes_model, "mixer", images=2, regions=2)
    assert_as_torch(shapes_model, "mixer", other, execution(*other))
    assert len(context._recorded) == 1


@pytest.mark.parametrize("kind", [ShortOfMemory, ShortOfMemoryAndQuiet])
def test_pieces_shrink_when_memory_runs_out_and_grow_back(shapes_model, exported, kind):
    execution, context = running(shapes_model, "upscale", exported, kind, 3)
    inputs = example_inputs(shapes_model, "upscale", regions=7)
    assert_as_torch(shapes_model, "upscale", inputs, execution(*inputs))
    assert context._tried == [4, 2, 2, 2, 1]
    context._tried.clear()
    execution(*inputs)
    assert context._tried == [2, 2, 2, 1]  # it is remembered
    context._room = 4
    for _ in range(GROW_AFTER):
        execution(*inputs)
    context._tried.clear()
    execution(*inputs)
    assert context._tried == [4, 3]


def test_recorded_runs_go_when_memory_runs_out(shapes_model, exported):
    execution, context = running(shapes_model, "upscale", exported, ShortOfMemory, 4, captured=True)
    inputs = example_inputs(shapes_model, "upscale", regions=4)
    for _ in range(3):
        execution(*inputs)
    assert len(context._recorded) == 1
    context._room = 3
    assert_as_torch(shapes_model, "upscale", inputs, execution(*inputs))
    for _ in range(3):
        execution(*inputs)
    assert len(context._recorded) == 1


def test_without_memory_for_one_the_image_gets_a_record_that_says_so(
    shapes_model, exported, shapes_images, shapes_settings
):
    from sca_batch.captioners.sca import ScaCaptioner
    from sca_batch.captioners.settings import CaptionSettings
    from sca_batch.pipeline.pipeline import Pipeline
    from sca_batch.pipeline.settings import BatchSettings
    from sca_batch.records import ImageRef
    from sca_batch.regions.settings import RegionSettings

    path = next(shapes_images.iterdir())
    ref = ImageRef("0", path.name, str(path), path.name)
    pipeline = Pipeline(
        shapes_model,
        ScaCaptioner(shapes_model, CaptionSettings(num_beams=1)),
        RegionSettings(automatic=shapes_settings),
        BatchSettings(encoder_batch=2),
    )
    execution, context = running(shapes_model, "encoder", exported, ShortOfMemory, 0)
    try:
        shapes_model.engines = {"encoder": execution}
        [failed] = pipeline.run([ref])
        assert (failed.status, failed.error_code) == ("failed", "oom")
        context._room = 2
        [described] = pipeline.run([ref])
        assert described.status == "ok"
    finally:
        shapes_model.engines = {}


def test_another_failure_is_no_matter_of_memory(shapes_model, exported):
    class Broken(StandInContext):
        def execute_async_v3(self, stream):
            return False

    execution, _ = running(shapes_model, "upscale", exported, Broken)
    with pytest.raises(ScaError, match="upscale: TensorRT could not run its plan"):
        execution(*example_inputs(shapes_model, "upscale", regions=1))


def test_onnx_runtime_without_memory_is_an_error_that_is_tried_again_with_less(tmp_path):
    import onnx
    from onnx import TensorProto, helper, parser

    body = parser.parse_graph(
        "huge (int64[1] n) => (float y) { big = ConstantOfShape(n) y = ReduceSum<keepdims=0>(big) }"
    )
    assert body.input[0].type.tensor_type.elem_type == TensorProto.INT64
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(body, opset_imports=opset, ir_version=10), tmp_path / "huge.onnx")
    engine = OnnxEngine(tmp_path / "huge.onnx", threads=1)
    assert engine(torch.tensor([5]))[0] == 0
    with pytest.raises(MemoryError, match="bad_alloc"):
        engine(torch.tensor([1 << 46]))


class StandInCache:
    """TensorRT-RTX's cache of compiled kernels; it takes back only what it gave."""

    def __init__(self, kernels=b""):
        self._kernels = kernels

    def serialize(self):
        return b"compiled:" + self._kernels

    def deserialize(self, blob):
        if not blob.startswith(b"compiled:"):
            return False
        self._kernels = blob.removeprefix(b"compiled:")
        return True


class StandInRuntimeConfig:
    """Takes settings and keeps the cache that it is given."""

    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def create_runtime_cache(self):
        return StandInCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class StandInCudaEngine:
    def create_runtime_config(self):
        return StandInRuntimeConfig()


def test_the_stand_ins_for_running_offer_nothing_that_the_real_classes_lack():
    pairs = {
        StandInCache: trt.IRuntimeCache,
        StandInRuntimeConfig: trt.IRuntimeConfig,
        StandInCudaEngine: trt.ICudaEngine,
    }
    for stand_in, real in pairs.items():
        for name in (name for name in vars(stand_in) if not name.startswith("_")):
            assert hasattr(real, name), f"{real} has no {name}"


def test_tensorrt_rtx_captures_cuda_graphs_itself_and_keeps_what_it_compiled(tmp_path, caplog):
    path = tmp_path / "encoder.plan.GPU.cache"
    config, cache = rtx_runtime_config(StandInCudaEngine(), path)
    assert config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
    assert config.dynamic_shapes_kernel_specialization_strategy == lazy
    config._cache._kernels = b"one"
    cache.ran()
    config._cache._kernels = b"one, two"
    cache.ran()
    config._cache._kernels = b"one, two, three"
    cache.ran()  # not after every run
    assert path.read_bytes() == b"compiled:one, two"
    cache.ran()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    again, _ = rtx_runtime_config(StandInCudaEngine(), path)
    assert again._cache._kernels == b"one, two, three"

    path.write_bytes(b"of another GPU")
    other, cache = rtx_runtime_config(StandInCudaEngine(), path)
    assert "is of another machine or version, and is made anew" in caplog.text
    other._cache._kernels = b"new"
    cache.ran()
    assert path.read_bytes() == b"compiled:new"


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, caplog):
    cache = RuntimeCache(StandInCache(b"kernels"), tmp_path / "gone" / "encoder.plan.GPU.cache")
    for _ in range(4):
        cache.ran()
    assert caplog.text.count("cannot be kept") == 1
