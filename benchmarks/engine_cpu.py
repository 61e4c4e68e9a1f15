"""SAM's image encoder on a CPU: torch, ONNX Runtime, OpenVINO; float32, bf16, int8.

`python benchmarks/engine_cpu.py --sam vit-b --threads 2 --repeats 3`

Random weights, one 1024 x 1024 image, all runtimes in one process and in turns after one round that
is not counted; medians. Errors are relative to torch in float32. int8 is ONNX Runtime's dynamic
quantization of the matrix products, per channel.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from engine_builds import SAMS, sca_of_size

from sca_batch.engines.graphs import example_inputs
from sca_batch.engines.onnx import OnnxEngine, export
from sca_batch.engines.openvino import OpenVinoEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sam", choices=list(SAMS), default="vit-b")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = sca_of_size(options.sam)
    inputs = example_inputs(model, "encoder", images=1)
    with tempfile.TemporaryDirectory() as folder:
        file, int8 = Path(folder, "encoder.onnx"), Path(folder, "encoder-int8.onnx")
        export(model, "encoder", file)
        _quantize(file, int8)
        threads = options.threads
        sides: dict[str, Callable[..., tuple[Tensor, ...]]] = {
            "torch fp32": lambda pixels: (model.encode_image(pixels),),
            "torch bf16 autocast": lambda pixels: _autocast(model, pixels),
            "ONNX Runtime fp32": OnnxEngine(file, threads=threads),
            "ONNX Runtime int8": OnnxEngine(int8, threads=threads),
            "OpenVINO fp32": OpenVinoEngine(file, threads=threads, static=True),
            "OpenVINO bf16": OpenVinoEngine(file, precision="bf16", threads=threads, static=True),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        outputs: dict[str, Tensor] = {}
        with torch.inference_mode():
            for _ in range(options.repeats + 1):
                for name, side in sides.items():
                    began = time.perf_counter()
                    (outputs[name],) = side(*inputs)
                    times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    exact = outputs["torch fp32"].double()
    print("| runtime | median s | least-most | against torch fp32 | relative error | cosine |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, median in medians.items():
        ours = outputs[name].double()
        error = float((ours - exact).norm() / exact.norm())
        cosine = float((ours * exact).sum() / ours.norm() / exact.norm())
        spread = f"{min(times[name][1:]):.1f}-{max(times[name][1:]):.1f}"
        ratio = median / medians["torch fp32"]
        print(f"| {name} | {median:.1f} | {spread} | {ratio:.2f} | {error:.1e} | {cosine:.5f} |")


def _autocast(model: object, pixels: Tensor) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (model.encode_image(pixels).float(),)  # type: ignore[attr-defined]


def _quantize(file: Path, int8: Path) -> None:
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        file, int8, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
    )


if __name__ == "__main__":
    main()
