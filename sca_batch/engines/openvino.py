"""The same ONNX files, run by OpenVINO on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sca_batch.engines.onnx import raise_if_out_of_memory
from sca_batch.errors import ScaError, optional_package

__all__ = ["OpenVinoEngine"]

_Array = npt.NDArray[np.generic]
_Compiled = Callable[[Sequence[_Array]], Mapping[object, _Array]]  # a model of the library

# OpenVINO's own choice is bf16 wherever the CPU has it: what is meant is always said.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """A graph that runs in OpenVINO on the CPU: in fp32, in bf16, or in the int8 of its file.

    An engine whose `static` is set is compiled anew for each shape it meets, which is faster where
    there are few of them: the encoder's batches.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        static: bool = False,
        threads: int | None = None,
    ) -> None:
        openvino = optional_package("openvino", "--engine openvino", "cpu")
        self._core = openvino.Core()
        self._static = static
        self._config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._model = self._core.read_model(str(path))
        except RuntimeError as error:
            raise ScaError(f"{path.name}: OpenVINO cannot load it: {error}") from error
        self._compiled: dict[tuple[tuple[int, ...], ...], _Compiled] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = [value.detach().cpu().contiguous().numpy() for value in inputs]
        try:
            found = self._for_shapes(tuple(array.shape for array in arrays))(arrays)
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            raise
        # Copied: the next call writes to the same memory.
        return tuple(torch.from_numpy(found[output].copy()) for output in found)

    def _for_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> _Compiled:
        key = shapes if self._static else ()
        if key not in self._compiled:
            model = self._model
            if self._static:
                model = model.clone()
                model.reshape(
                    {port.any_name: list(s) for port, s in zip(model.inputs, shapes, strict=True)}
                )
            self._compiled[key] = self._core.compile_model(model, "CPU", self._config)
        return self._compiled[key]
