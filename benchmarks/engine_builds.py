"""Export, parity and TensorRT-RTX build of one graph at its real size, on a machine without a GPU.

`python benchmarks/engine_builds.py encoder --sam vit-b --precision fp16 --threads 2`

Weights are random (normal, 0.02), sizes are SAM's; the mixer has 12 layers. One graph and one
precision a run, since memory is the process's. Parity is ONNX Runtime (bf16: OpenVINO)
against torch in float32 on one image, or five regions. The profile is that of
engines/vit-h-fp16.toml.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config

from sca_batch.checks.engines import torch_outputs
from sca_batch.engines.graphs import GRAPHS, example_inputs
from sca_batch.engines.onnx import OnnxEngine, Precision, export, onnx_files
from sca_batch.engines.openvino import OpenVinoEngine
from sca_batch.engines.recipes import read_recipe
from sca_batch.engines.tensorrt import build_plan, profile_for
from sca_batch.model.config import ScaConfig, sam_config_from_dicts
from sca_batch.model.sca import ScaModel

# Width, layers, heads, layers with global attention.
SAMS = {
    "vit-b": (768, 12, 12, (2, 5, 8, 11)),
    "vit-l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit-h": (1280, 32, 16, (7, 15, 23, 31)),
}


def sca_of_size(sam: str) -> ScaModel:
    """SCA around this SAM with random weights and hardly any language model."""
    width, layers, heads, global_layers = SAMS[sam]
    vision = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": list(global_layers),
        "mlp_dim": 4 * width,
    }
    text = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16)
    torch.manual_seed(0)
    model = ScaModel(ScaConfig(sam=sam_config_from_dicts(vision, {}, {}), text=text))
    for name, parameter in model.vision_encoder.named_parameters():
        # Position codes start at zero in the library, and would hide an axis that is swapped.
        if parameter.ndim > 1 or "pos" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", choices=list(GRAPHS))
    parser.add_argument("--sam", choices=list(SAMS), default="vit-b")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = sca_of_size(options.sam)
    title = f"{options.graph} {options.sam if options.graph == 'encoder' else ''}".strip()
    print(f"| {title} {options.precision}", end=" ", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file, plan = Path(folder, "graph.onnx"), Path(folder, "graph.plan")
        began = time.perf_counter()
        export(model, options.graph, file, precision=Precision(options.precision))
        exported_s = time.perf_counter() - began
        size = sum(part.stat().st_size for part in onnx_files(file)) / 2**20
        print(f"| {exported_s:.0f} s, {_peak():.1f} GB | {size:.0f} MiB", end=" ", flush=True)

        profile = profile_for(model, options.graph, read_recipe("vit-h-fp16"))
        began = time.perf_counter()
        memory = build_plan("tensorrt-rtx", file, plan, profile) or 0
        built_s = time.perf_counter() - began
        size = plan.stat().st_size / 2**20
        print(f"| {built_s:.0f} s, {_peak():.1f} GB | {size:.0f} MiB | {memory / 2**30:.1f} GiB",
              end=" ", flush=True)  # fmt: skip

        inputs = example_inputs(model, options.graph, images=1, regions=5)
        expected = torch_outputs(model, options.graph, inputs)
        with torch.inference_mode():
            # ONNX Runtime has no bfloat16 on a CPU.
            runs = OpenVinoEngine if options.precision == "bf16" else OnnxEngine
            outputs = runs(file)(*inputs)
        errors = [
            float((a.double() - b.double()).norm() / b.double().norm())
            for a, b in zip(outputs, expected, strict=True)
        ]
        print(f"| {', '.join(f'{error:.1e}' for error in errors)} |", flush=True)


def _peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
