"""The image encoder in eight bits: static quantization after training, in ONNX's QDQ form.

ONNX Runtime and OpenVINO both run the file. The ranges of activations are those that were seen on
calibration images; weights have a range per channel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sca_batch.engines.onnx import need, onnx_files

__all__ = ["quantize"]

# Products with weights, where the time goes. Softmax, norms and attention's own products stay.
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantize(exported: Path, path: Path, pixels: Iterable[Tensor]) -> None:
    """Writes the int8 form of an encoder's float32 ONNX file; weights lie in `PATH.data` beside it.

    Args:
        pixels: (B, 3, S, S) as the encoder gets them; at least one.

    Raises:
        MissingPackageError: without ONNX Runtime, which also runs the calibration.
    """
    quantization: Any = need("onnxruntime.quantization", "int8")
    batches = iter(pixels)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"pixels": batch.cpu().numpy()}

    with _quiet():
        quantization.quantize_static(
            str(exported),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            # Unsigned: OpenVINO loses half of a signed range in front of a Clip.
            activation_type=quantization.QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
            use_external_data_format=True,
        )
    for file in onnx_files(path):
        file.chmod(exported.stat().st_mode)  # it comes from a temporary file, of its owner only


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps advice on other ways to quantize away; it goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
