"""ONNX: writing a graph to a file, and running that file with ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.errors import ScaError, optional_package
from sca_batch.model.hub import quiet_libraries
from sca_batch.model.sca import ScaModel

__all__ = [
    "OPSET", "OnnxEngine", "Precision", "export", "files_digest", "onnx_files",
    "raise_if_out_of_memory",
]  # fmt: skip

# 20 has LayerNormalization and Gelu. 23 would turn attention into one operator, which TensorRT
# builds in half precision only; what is exported here is eager attention anyway.
OPSET = 20
_EXPORTERS = ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype a graph computes in; fixed when it is exported. Inputs and outputs stay float32."""

    name: str = "fp32"
    keep_fp32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in _DTYPES:
            raise ScaError(f"precision {self.name!r} of a graph: expected {' or '.join(_DTYPES)}")

    @property
    def dtype(self) -> torch.dtype:
        """Torch's name for it."""
        return _DTYPES[self.name]


def export(model: ScaModel, name: str, path: Path, *, precision: Precision | None = None) -> None:
    """Writes one graph of a model, with open axes, as ONNX; weights lie in `PATH.data` beside it.

    Raises:
        MissingPackageError: without onnx and onnxscript.
        ScaError: for an encoder that can be traced at one batch size only.
    """
    precision = precision or Precision()
    for package in ("onnx", "onnxscript"):
        optional_package(package, "exporting a graph", "cpu")
    facts = GRAPHS[name]
    graph = build_graph(model, name, dtype=precision.dtype, keep_fp32=precision.keep_fp32)
    # One size object per name: sizes that two inputs share are one axis to the tracer.
    sizes: dict[str, torch.export.Dim] = {}
    dynamic = {
        key: {
            i: sizes.setdefault(axis, torch.export.Dim(axis, min=1))
            for i, axis in enumerate(axes)
            if axis is not None
        }
        for key, axes in facts.axes.items()
    }
    # Kept away: notes on the exporter's own deprecations and on unused example values.
    with quiet_libraries(*_EXPORTERS, level=logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.to(model.device),
            example_inputs(model, name),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(facts.inputs),
            output_names=list(facts.outputs),
            dynamic_shapes=dynamic,
            external_data=True,
            verbose=False,
        )
    _check_open_axes(path, name)


def _check_open_axes(path: Path, name: str) -> None:
    """An encoder that makes a size `int` fixes it, and the exporter says nothing of that."""
    graph = (
        optional_package("onnx", "exporting a graph", "cpu")
        .load(path, load_external_data=False)
        .graph
    )
    for item in graph.input:
        for axis, size in zip(
            GRAPHS[name].axes[item.name], item.type.tensor_type.shape.dim, strict=True
        ):
            if axis is not None and not size.dim_param:
                raise ScaError(
                    f"{name}: tracing fixed the number of {axis} to {size.dim_value}. The model's "
                    "code turns that size into a number: x.shape[0], not len(x)"
                )


class OnnxEngine:
    """A graph that runs in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        runtime = optional_package("onnxruntime", "--engine onnx", "cpu")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # The arena keeps the most that any run took: 8 GB for an encoder.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except _runtime_errors() as error:
            raise ScaError(f"{path.name}: ONNX Runtime cannot load it: {error}") from error
        self._names = [item.name for item in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = (value.detach().cpu().contiguous().numpy() for value in inputs)
        named = dict(zip(self._names, arrays, strict=True))
        try:
            outputs = self._session.run(None, named)
        except _runtime_errors() as error:
            raise_if_out_of_memory(error)
            raise
        return tuple(torch.from_numpy(value) for value in outputs)


def raise_if_out_of_memory(error: Exception) -> None:
    """A runtime's own exception as Python's, for callers that then try with less at a time.

    Raises:
        MemoryError: where that is what it says.
    """
    if any(text in str(error) for text in ("bad_alloc", "bad allocation", "Failed to allocate")):
        raise MemoryError(str(error)) from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    """All that ONNX Runtime raises; its classes have none in common."""
    module = optional_package("onnxruntime.capi.onnxruntime_pybind11_state", "--engine onnx", "cpu")
    found = (value for value in vars(module).values() if isinstance(value, type))
    return (RuntimeError, *(value for value in found if issubclass(value, Exception)))


def onnx_files(path: Path) -> list[Path]:
    """The ONNX file and, where weights lie beside it, their file."""
    beside = path.with_name(f"{path.name}.data")
    return [path, beside] if beside.is_file() else [path]


def files_digest(path: Path) -> str:
    """SHA-256 over the ONNX file and its weights, hex."""
    digest = hashlib.sha256()
    for file in onnx_files(path):
        with file.open("rb") as opened:
            while block := opened.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
