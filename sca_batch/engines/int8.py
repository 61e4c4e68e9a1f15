"""The image encoder in eight bits: static quantization after training, in ONNX's QDQ form.

ONNX Runtime and OpenVINO both run the file. The ranges of activations are those that were seen on
calibration images; weights have a range per channel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sca_batch.engines.onnx import onnx_files
from sca_batch.errors import optional_package

__all__ = ["quantize"]

# Products with weights are where the time goes; softmax and norms stay in float32.
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantize(exported: Path, path: Path, pixels: Iterable[Tensor]) -> None:
    """Writes the int8 form of an encoder's float32 ONNX file; weights lie in `PATH.data` beside it.

    Args:
        pixels: (B, 3, S, S) as the encoder gets them; at least one.

    Raises:
        MissingPackageError: without ONNX Runtime, which also runs the calibration.
    """
    quantization = optional_package("onnxruntime.quantization", "int8", "cpu")
    calibrate = optional_package("onnxruntime.quantization.calibrate", "int8", "cpu")
    graph = optional_package("onnx", "int8", "cpu").load(exported, load_external_data=False).graph
    products = _products_with_weights(graph)
    with _quiet(), TemporaryDirectory() as folder:
        ranges = Path(folder, "ranges.json")
        calibrate.save_tensors_data(_ranges(exported, Path(folder), pixels), ranges)
        quantization.quantize_static(
            str(exported),
            str(path),
            calibration_cache_path=ranges,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_quantize=[node.name for node in products],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            # Unsigned: OpenVINO loses half of a signed range in front of a Clip.
            activation_type=quantization.QuantType.QUInt8,
            use_external_data_format=True,
        )
    for file in onnx_files(path):
        file.chmod(exported.stat().st_mode)  # it comes from a temporary file, of its owner only


class _Node(Protocol):
    name: str
    op_type: str
    input: Sequence[str]
    output: Sequence[str]


class _Graph(Protocol):
    """As much of an ONNX graph as is looked at."""

    initializer: Sequence[_Node]
    node: Sequence[_Node]


class _Model(Protocol):
    graph: _Graph


def _products_with_weights(graph: _Graph) -> list[_Node]:
    """The nodes that are quantized: not the products of two activations, which attention has."""
    weights = {item.name for item in graph.initializer}
    return [n for n in graph.node if n.op_type in _OPERATORS and weights & set(n.input)]


def _ranges(exported: Path, folder: Path, pixels: Iterable[Tensor]) -> object:
    """The least and the largest value of every activation that is quantized."""
    runtime = optional_package("onnxruntime", "int8", "cpu")
    quantization = optional_package("onnxruntime.quantization", "int8", "cpu")
    calibrate = optional_package("onnxruntime.quantization.calibrate", "int8", "cpu")
    batches = iter(pixels)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            batch = next(batches, None)
            return None if batch is None else {"pixels": batch.cpu().numpy()}

    # As the library has it, but for memory: attention's scores (0.8 GB a layer in ViT-B) need no
    # range, and its session keeps an arena of many times that: 21 GB.
    class Calibrator(calibrate.MinMaxCalibrater):  # type: ignore[misc, name-defined]
        def select_tensors_to_calibrate(self, model: _Model) -> tuple[set[str], object]:
            every, value_infos = super().select_tensors_to_calibrate(model)
            products = _products_with_weights(model.graph)
            wanted = {tensor for node in products for tensor in (*node.input, *node.output)}
            return every & wanted, value_infos

        def create_inference_session(self) -> None:
            options = runtime.SessionOptions()
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_cpu_mem_arena = False
            options.intra_op_num_threads = torch.get_num_threads()
            self.infer_session = runtime.InferenceSession(
                self.augmented_model_path, options, providers=["CPUExecutionProvider"]
            )

    calibrator = Calibrator(
        exported, _OPERATORS, str(folder / "augmented.onnx"), use_external_data_format=True
    )
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps advice on other ways to quantize away; it goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
