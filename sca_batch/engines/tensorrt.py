"""TensorRT, in both flavours: building plans, and running them on CUDA tensors.

`tensorrt_rtx` (TensorRT for RTX) builds without a GPU and serves sm75 to sm121 except the
data-centre GPUs sm90 and sm100; `tensorrt` builds on the GPU that it is for, any. Their Python APIs
agree in everything used here. Running is written to the documented API and was never run on a GPU.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sca_batch.engines.graphs import GRAPHS, input_sizes
from sca_batch.engines.plans import BACKENDS, RTX_CAPABILITIES, PlanFacts
from sca_batch.engines.recipes import Recipe
from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.model.sca import ScaModel

__all__ = ["Execution", "TensorRtEngine", "build", "build_plan", "profile_for"]

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
_INSTALL = {
    "tensorrt": "pip install 'sca[trt]'",
    "tensorrt-rtx": "pip install 'sca[trt-rtx]'",
}
_MEMORY = re.compile(r"Total (?:Activation|Weights) Memory: (\d+) bytes")


def build(
    model: ScaModel,
    facts: PlanFacts,
    onnx: Path,
    recipe: Recipe,
    *,
    device: torch.device,
    on_phase: Callable[[str, int, int], bool] | None = None,
) -> tuple[PlanFacts, Path]:
    """The plan of an exported graph, beside its ONNX file, and what is known of it now.

    Raises:
        ScaError: where the flavour does not serve the GPU or cannot build here, and with the
            library's own words where it refuses the graph.
    """
    capabilities = target_capabilities(facts.backend, recipe.capabilities, device)
    profile = profile_for(model, facts.graph, recipe)
    plan = onnx.with_suffix(".plan")
    memory = build_plan(
        facts.backend, onnx, plan, profile, capabilities=capabilities, on_phase=on_phase
    )
    shapes = {name: [list(sizes) for sizes in triple] for name, triple in profile.items()}
    return replace(facts, capabilities=capabilities, shapes=shapes, memory_bytes=memory), plan


def target_capabilities(
    backend: str, asked: Sequence[str], device: torch.device
) -> tuple[str, ...]:
    """What a plan is built for; nothing is what TensorRT-RTX builds for by itself."""
    here = None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        here = f"sm{major}{minor}"
    if backend == "tensorrt":
        if here is None:
            raise ScaError(
                "tensorrt builds on the GPU that the plan is for, and this run is on the CPU. Run "
                "it there with --device cuda, or build with --backend tensorrt-rtx, which needs no "
                f"GPU and serves {', '.join(RTX_CAPABILITIES)}"
            )
        if asked and tuple(asked) != (here,):
            raise ScaError(f"tensorrt builds for the GPU it runs on, {here}, not {asked[0]}")
        return (here,)
    unserved = [sm for sm in (*asked, *([here] if here else [])) if sm not in RTX_CAPABILITIES]
    if unserved:
        raise ScaError(
            f"TensorRT-RTX does not serve {unserved[0]} (it serves {', '.join(RTX_CAPABILITIES)}). "
            "H100, H200 and B200 need --backend tensorrt, built on the machine itself"
        )
    return tuple(asked)


def profile_for(model: ScaModel, graph: str, recipe: Recipe) -> Profile:
    """Least, usual and largest shape of each input."""
    own = 1 + model.mask_decoder.num_mask_tokens
    sizes: dict[str, tuple[int, ...]] = {
        "images": recipe.images,
        "regions": recipe.regions,
        "prompt_tokens": recipe.prompt_tokens,
        "tokens": tuple(own + n for n in recipe.prompt_tokens),
    }
    if graph == "mixer":
        # Every region may be of another image; what they take is little beside the regions'.
        least, usual, most = recipe.images
        sizes["images"] = (least, usual, max(most, recipe.regions[2]))
    return {
        name: tuple(  # type: ignore[misc]
            tuple(sizes[n][which] if isinstance(n, str) else n for n in shape) for which in range(3)
        )
        for name, shape in input_sizes(model, graph).items()
    }


def build_plan(
    backend: str,
    onnx: Path,
    plan: Path,
    profile: Profile,
    *,
    capabilities: Sequence[str] = (),
    on_phase: Callable[[str, int, int], bool] | None = None,
) -> int | None:
    """Parses and builds; writes the plan. Returns the bytes of GPU memory that its log names."""
    trt, log = _flavour(backend), _logger(backend)
    log.lines.clear()
    builder = trt.Builder(log)
    # Needless with TensorRT-RTX and 11, right with 10.
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise ScaError(f"{onnx.name}: {backend} cannot read it: {' '.join(reasons)}")
    config = builder.create_builder_config()
    if profile:
        shapes = builder.create_optimization_profile()
        for name, triple in profile.items():
            shapes.set_shape(name, *triple)
        config.add_optimization_profile(shapes)
    if capabilities and hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            known = getattr(trt.ComputeCapability, capability.upper(), None)
            if known is None or not config.set_compute_capability(known, i):
                raise ScaError(f"{backend} does not build for {capability}")
    monitor = None if on_phase is None else _monitor(trt, on_phase)
    if monitor is not None:
        config.progress_monitor = monitor
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ScaError(f"{onnx.name}: {backend} cannot build it: {log.reason()}")
    plan.write_bytes(built)
    found = [int(n) for line in log.lines for n in _MEMORY.findall(line)]
    return sum(found) if found else None


class TensorRtEngine:
    """A plan on the current CUDA device."""

    def __init__(self, path: Path, facts: PlanFacts) -> None:
        # The standard runtime returns a null object without a driver, and its first use is a crash.
        if not torch.cuda.is_available():
            raise ScaError(
                f"{path.name}: TensorRT plans run on CUDA devices, and none is visible. Use "
                "--engine openvino or torch, or see what is wrong: sca doctor"
            )
        engine = deserialize(path, facts.backend)
        trt = _flavour(facts.backend)
        if hasattr(engine, "create_runtime_config") and hasattr(trt, "CudaGraphStrategy"):
            runtime_config = engine.create_runtime_config()
            runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context()
        self._engine = engine  # the context does not keep it
        self._execution = Execution(
            context, facts, stream=lambda: torch.cuda.current_stream().cuda_stream
        )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._execution(*inputs)


def deserialize(path: Path, backend: str) -> Any:
    """The library's engine of a plan.

    Raises:
        ScaError: with the library's own words, for a plan that it does not take.
    """
    trt, log = _flavour(backend), _logger(backend)
    log.lines.clear()
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ScaError(f"{path.name}: {backend} does not take this plan: {log.reason()}")
    return engine


class Execution:
    """Runs an execution context on torch tensors, in pieces that fit its profile.

    Nothing is copied and nothing waits: work is queued on the current stream, in whose order the
    tensors' memory is used again.
    """

    def __init__(self, context: Any, facts: PlanFacts, *, stream: Callable[[], int]) -> None:
        self._context = context
        self._graph = facts.graph
        self._stream = stream
        self._inputs, self._outputs = GRAPHS[facts.graph].inputs, GRAPHS[facts.graph].outputs
        self._most: Mapping[str, Sequence[int]] = {n: s[2] for n, s in facts.shapes.items()}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        pieces = [self._run(piece) for piece in self._pieces(inputs)]
        if len(pieces) == 1:
            return pieces[0]
        return tuple(torch.cat(outputs) for outputs in zip(*pieces, strict=True))

    def _pieces(self, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        axes = GRAPHS[self._graph].axes
        axis = "images" if self._graph == "encoder" else "regions"
        split = [axes[name][0] == axis for name in self._inputs]
        which = split.index(True)
        size, most = inputs[which].shape[0], self._most[self._inputs[which]][0]
        for start in range(0, size, most):
            piece = [
                value[start : start + most] if parted else value
                for value, parted in zip(inputs, split, strict=True)
            ]
            if self._graph == "mixer" and piece[0].shape[0] > self._most["embedding"][0]:
                # One image for each region: which of them are needed is not read from the device.
                piece[0] = piece[0].index_select(0, piece[2])
                piece[2] = torch.arange(piece[2].shape[0], device=piece[2].device)
            yield tuple(piece)

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = self._context
        held = [value.contiguous() for value in inputs]
        for name, value in zip(self._inputs, held, strict=True):
            if not context.set_input_shape(name, tuple(value.shape)):
                raise ScaError(
                    f"{self._graph}: {name} of shape {tuple(value.shape)} is beyond what the plan "
                    f"was built for, at most {tuple(self._most[name])}. Build it for more: "
                    "sca engine build --set prompt_tokens=..."
                )
            context.set_tensor_address(name, value.data_ptr())
        missing = context.infer_shapes()
        assert not missing, f"inputs without a shape: {missing}"
        outputs = tuple(
            torch.empty(tuple(context.get_tensor_shape(name)), device=held[0].device)
            for name in self._outputs
        )
        for name, value in zip(self._outputs, outputs, strict=True):
            context.set_tensor_address(name, value.data_ptr())
        if not context.execute_async_v3(self._stream()):
            raise ScaError(f"{self._graph}: TensorRT could not run its plan")
        return outputs


def _flavour(backend: str) -> Any:
    try:
        return importlib.import_module(BACKENDS[backend])
    except (ImportError, OSError):
        raise MissingPackageError(BACKENDS[backend], backend, _INSTALL[backend]) from None


@lru_cache
def _logger(backend: str) -> Any:
    """One for each flavour: the first that is registered stays in use."""
    trt = _flavour(backend)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what is said: failures return None and say why only here."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            errors = self.errors[-2:] or self.lines[-2:]
            self.errors.clear()
            return " ".join(" ".join(errors).split()) or "it does not say why"

    return Log()


def _monitor(trt: Any, on_phase: Callable[[str, int, int], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self.steps[name] = num_steps

        def step_complete(self, name: str, step: int) -> bool:
            return on_phase(name, step + 1, self.steps.get(name, 0))

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()
