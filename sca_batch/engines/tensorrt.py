"""TensorRT, in both flavours: building plans, and running them on CUDA tensors.

`tensorrt_rtx` (TensorRT for RTX) builds without a GPU and serves sm75 to sm121 except the
data-centre GPUs sm90 and sm100; `tensorrt` builds on the GPU that it is for, any. Their Python APIs
agree in everything used here. Running is written to the documented API and was never run on a GPU.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sca_batch.engines.execution import Execution, capture_cuda_graph
from sca_batch.engines.graphs import input_sizes
from sca_batch.engines.plans import BACKENDS, RTX_CAPABILITIES, PlanFacts
from sca_batch.engines.recipes import Recipe
from sca_batch.errors import ScaError, optional_package
from sca_batch.model.sca import ScaModel

__all__ = ["RuntimeCache", "TensorRtEngine", "build", "build_plan", "profile_for"]

log = logging.getLogger(__name__)

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
OnPhase = Callable[[str, int, int], bool]  # told (phase, step, steps); False stops the build
Native = Any  # an object of the library, which has no types
_MEMORY = re.compile(r"Total (?:Activation|Weights) Memory: (\d+) bytes")


def build(
    model: ScaModel,
    facts: PlanFacts,
    onnx: Path,
    recipe: Recipe,
    *,
    device: torch.device,
    on_phase: OnPhase | None = None,
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
    """GPUs that a plan is built for; none are what TensorRT-RTX builds for by itself."""
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
    on_phase: OnPhase | None = None,
) -> int | None:
    """Parses and builds; writes the plan. Returns the bytes of GPU memory that its log names."""
    trt, said = _flavour(backend), _logger(backend)
    said.lines.clear()
    builder = trt.Builder(said)
    # Needless with TensorRT-RTX and 11, right with 10.
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, said)
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
        raise ScaError(f"{onnx.name}: {backend} cannot build it: {said.reason()}")
    plan.write_bytes(built)
    found = [int(n) for line in said.lines for n in _MEMORY.findall(line)]
    return sum(found) if found else None


class TensorRtEngine:
    """A plan on the current CUDA device.

    CUDA graphs are TensorRT-RTX's own business; for the standard flavour they are captured here.
    """

    def __init__(self, path: Path, facts: PlanFacts) -> None:
        # The standard runtime returns a null object without a driver, and its first use is a crash.
        if not torch.cuda.is_available():
            raise ScaError(
                f"{path.name}: TensorRT plans run on CUDA devices, and none is visible. Use "
                "--engine openvino or torch, or see what is wrong: sca doctor"
            )
        engine = deserialize(path, facts.backend)
        self._cache: RuntimeCache | None = None
        if facts.backend == "tensorrt-rtx":
            name = re.sub(r"\W+", "-", torch.cuda.get_device_name())
            beside = path.with_name(f"{path.name}.{name}.cache")
            runtime_config, self._cache = rtx_runtime_config(engine, beside)
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context()
        if context is None:
            need = (facts.memory_bytes or 0) / 2**20
            raise ScaError(
                f"{path.name}: {facts.backend} cannot prepare it: "
                f"{_logger(facts.backend).reason()}. At its largest sizes it needs {need:,.0f} MiB "
                "of GPU memory; build it for fewer: sca engine build --set regions=1,16,16"
            )
        self._engine = engine  # the context does not keep it
        self._execution = Execution(
            context,
            facts,
            stream=lambda: torch.cuda.current_stream().cuda_stream,
            reason=_logger(facts.backend).reason,
            capture=None if self._cache else capture_cuda_graph,
        )
        self._ran_on: torch.cuda.Stream | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        stream = torch.cuda.current_stream()
        if self._ran_on is not None and self._ran_on != stream:
            stream.wait_stream(self._ran_on)  # a context's memory is there once
        self._ran_on = stream
        outputs = self._execution(*inputs)
        if self._cache is not None:
            self._cache.ran()
        return outputs


def rtx_runtime_config(engine: Native, cache: Path) -> tuple[Native, RuntimeCache]:
    """Settings of TensorRT-RTX: CUDA graphs of its own, and what it compiled last time."""
    trt = _flavour("tensorrt-rtx")
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    # Kernels that know their shapes are compiled beside the run, which does not wait for them.
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.LAZY
    )
    compiled = config.create_runtime_cache()
    kept = RuntimeCache(compiled, cache)
    config.set_runtime_cache(compiled)
    return config, kept


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled for a GPU, kept beside the plan for the next process.

    The library itself refuses bytes of another version, another GPU or another driver. A folder
    that cannot be written to costs the next process the time to compile, and is said once.
    """

    def __init__(self, compiled: Native, path: Path) -> None:
        self._compiled, self._path = compiled, path
        self._runs, self._num_bytes = 0, 0
        if path.is_file():
            before = path.read_bytes()
            if compiled.deserialize(before):
                self._num_bytes = len(before)
            else:
                log.warning("%s is of another machine or version, and is made anew.", path.name)

    def ran(self) -> None:
        """Notes a run; after the 1st, 2nd, 4th, 8th ... what was compiled since is kept.

        Kernels come late, when their shapes come, and reading the cache takes time.
        """
        self._runs += 1
        if self._runs & (self._runs - 1):
            return
        compiled = bytes(self._compiled.serialize())
        if len(compiled) == self._num_bytes:
            return
        self._num_bytes = len(compiled)
        writing = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            writing.write_bytes(compiled)
            writing.replace(self._path)
        except OSError as error:
            if self._runs == 1:
                log.warning("%s cannot be kept: %s", self._path.name, error)


def deserialize(path: Path, backend: str) -> Native:
    """The library's engine of a plan.

    Raises:
        ScaError: with the library's own words, for a plan that it does not take.
    """
    trt, said = _flavour(backend), _logger(backend)
    said.lines.clear()
    engine = trt.Runtime(said).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ScaError(f"{path.name}: {backend} does not take this plan: {said.reason()}")
    return engine


def _flavour(backend: str) -> ModuleType:
    module, extra = BACKENDS[backend]
    return optional_package(module, backend, extra)


@lru_cache
def _logger(backend: str) -> Native:
    """One for each flavour: the first that is registered stays in use."""
    trt = _flavour(backend)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what is said: failures return None and say why only here."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=10_000)  # a process may run for days
            self.errors: deque[str] = deque(maxlen=10)

        def log(self, severity: object, message: str) -> None:
            self.lines.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            errors = list(self.errors or self.lines)[-2:]
            self.errors.clear()
            return " ".join(" ".join(errors).split()) or "it does not say why"

    return Log()


def _monitor(trt: ModuleType, on_phase: OnPhase) -> Native:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
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
