"""Published sizes on an NVIDIA GPU, in torch: what an image costs, in three precisions.

`python benchmarks/gpu_torch.py --sam vit-b --sam vit-h`

Random weights: SAM, a mixer of 12 layers and GPT2-large at their real sizes. The encoder on one
and on eight images of 1024 x 1024; automatic masks' 1,024 points, 64 at a time (decoder, masks and
scores; filters run elsewhere); captions of 64 boxes, 32 at a time, three beams of 19 tokens, none
of which ends early. Milliseconds of the clock with the device waited for: the median of the repeats
after one that is not counted, and the range. Peak memory is the allocator's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sca_batch.model.sca import ScaModel
from sca_batch.train.initial import sizes_before_training
from sca_batch.train.recipes import CaptionRecipe

SAMS = {
    "vit-b": "facebook/sam-vit-base",
    "vit-l": "facebook/sam-vit-large",
    "vit-h": "facebook/sam-vit-huge",
}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sam", action="append", choices=list(SAMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.repeats} repeats")
    print(f"{'':8} {'':9} {'stage':34} {'ms':>9}  {'range':19} {'peak GiB':>8}")
    for sam in options.sam or list(SAMS):
        model = random_model(SAMS[sam], device)
        for dtype, autocast in DTYPES.items():
            model.autocast_dtype = autocast
            for stage, work in stages(model).items():
                times, peak = measured(work, device, options.repeats)
                spread = f"{min(times):.1f} to {max(times):.1f}"
                middle = statistics.median(times)
                print(f"{sam:8} {dtype:9} {stage:34} {middle:9.1f}  {spread:19} {peak:8.1f}")
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def random_model(sam: str, device: torch.device) -> ScaModel:
    """SCA of these sizes, drawn on the device."""
    config = sizes_before_training(CaptionRecipe("benchmark", sam=sam))
    torch.manual_seed(0)
    with device:
        model = ScaModel(config)
    return model.requires_grad_(False).eval()


def stages(model: ScaModel) -> dict[str, Callable[[], object]]:
    """What is timed, by name; embeddings are encoded once, in the precision at hand."""
    device = model.device
    pixels = torch.randn(8, 3, 1024, 1024, device=device)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1024, 1, 2, generator=generator).to(device) * 1024
    corners = torch.rand(64, 2, generator=generator) * 700
    sides = 50 + 250 * torch.rand(64, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1).to(device)
    with torch.inference_mode():
        embedding = model.encode_image(pixels[:1])

    def masks() -> None:
        for some in points.split(64):
            tokens, features = model.fuse_prompts(embedding, points_RP2=some)
            model.predict_iou(tokens)
            model.predict_masks(tokens, features, embedding)

    def captions() -> None:
        for some in boxes.split(32):
            queries = model.region_queries(embedding, boxes_R4=some).queries
            model.generate(queries, num_beams=3, max_new_tokens=19)

    return {
        "encoder, 1 image": lambda: model.encode_image(pixels[:1]),
        "encoder, 8 images": lambda: model.encode_image(pixels),
        "masks, 1,024 points": masks,
        "captions, 64 boxes, 3 beams": captions,
    }


@torch.inference_mode()
def measured(
    work: Callable[[], object], device: torch.device, repeats: int
) -> tuple[list[float], float]:
    """Milliseconds of every repeat, and the peak of the memory in GiB (0 on a CPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) * 1e3)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return times[1:], peak


if __name__ == "__main__":
    main()
