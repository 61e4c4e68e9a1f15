"""SAM's image encoder on a CPU: torch, ONNX Runtime, OpenVINO; float32, bf16, int8.

`python benchmarks/engine_cpu.py --sam vit-b --threads 2 --repeats 3`

Random weights, one 1024 x 1024 photograph of the bundled sample, all runtimes in one process and in
turns after one round that is not counted. Seconds are those of the clock, or with --cpu-time those
that the process's threads worked, for a machine that is busy with other things. Ratios are taken
round by round, so that a change of the machine's speed touches both sides; medians and spread.
Errors are relative to torch in float32.
int8 is what `sca engine build --precision int8` makes, calibrated on the sample's other images.
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

from sca_batch.checks.pictures import read_pictures
from sca_batch.engines.int8 import quantize
from sca_batch.engines.onnx import OnnxEngine, export
from sca_batch.engines.openvino import OpenVinoEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sam", choices=list(SAMS), default="vit-b")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--files", type=Path, help="keep the ONNX files here, and take what is there"
    )
    parser.add_argument("--cpu-time", action="store_true", help="seconds of work, all threads")
    parser.add_argument("--only", action="append", help="a row of the table, beside torch fp32")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    model = sca_of_size(options.sam)
    pictures = read_pictures([], model.config.image_size)
    inputs = (next(iter(pictures.comparing()))[0],)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        file, int8 = folder / "encoder.onnx", folder / "encoder-int8.onnx"
        if not file.is_file():
            export(model, "encoder", file)
        if not int8.is_file():
            quantize(file, int8, (pixels for pixels, _ in pictures.calibrating()))
        threads = options.threads
        sides: dict[str, Callable[..., tuple[Tensor, ...]]] = {
            "torch fp32": lambda pixels: (model.encode_image(pixels),),
            "torch bf16 autocast": lambda pixels: _autocast(model, pixels),
            "ONNX Runtime fp32": OnnxEngine(file, threads=threads),
            "ONNX Runtime int8": OnnxEngine(int8, threads=threads),
            "OpenVINO fp32": OpenVinoEngine(file, threads=threads, static=True),
            "OpenVINO bf16": OpenVinoEngine(file, precision="bf16", threads=threads, static=True),
            "OpenVINO int8": OpenVinoEngine(int8, precision="int8", threads=threads, static=True),
        }
        if options.only:
            sides = {name: sides[name] for name in ["torch fp32", *options.only]}
        times: dict[str, list[float]] = {name: [] for name in sides}
        outputs: dict[str, Tensor] = {}
        with torch.inference_mode():
            for finished in range(options.repeats + 1):
                for name, side in sides.items():
                    began = clock()
                    (outputs[name],) = side(*inputs)
                    times[name].append(clock() - began)
                # After every round: on a machine with other work the last one may never come.
                if finished:
                    print(f"\n{finished} of {options.repeats} rounds")
                    _print_table(times, outputs)


def _print_table(times: dict[str, list[float]], outputs: dict[str, Tensor]) -> None:
    exact = outputs["torch fp32"].double()
    print("| runtime | median s | against torch fp32 | least-most | relative error | cosine |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, taken in times.items():
        median = statistics.median(taken[1:])
        ratios = [a / b for a, b in zip(taken[1:], times["torch fp32"][1:], strict=True)]
        ours = outputs[name].double()
        error = float((ours - exact).norm() / exact.norm())
        cosine = float((ours * exact).sum() / ours.norm() / exact.norm())
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        ratio = statistics.median(ratios)
        print(f"| {name} | {median:.1f} | {ratio:.2f} | {spread} | {error:.1e} | {cosine:.5f} |",
              flush=True)  # fmt: skip


def _autocast(model: object, pixels: Tensor) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (model.encode_image(pixels).float(),)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
