"""SAM's mask decoder on a batch of point prompts: ours, transformers', segment_anything's.

`python benchmarks/decoder.py --prompts 16 --repeats 5 --threads 1`

Sizes are SAM's own (256 wide, 64 x 64 grid, 4 + 1 + 2 tokens); weights are random and the same on
all sides. Ours stops at predicted IoU, since masks are upscaled for survivors only; a second
figure includes upscaling every prompt's masks, which is what the peers always do, and a third
gives torch one prompt at a time, as automatic masks do on a CPU (`regions/fused.py`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder as PeerDecoder
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamMaskDecoder

from sca_batch.model.config import sam_config_from_dicts
from sca_batch.model.sam import MaskDecoder

# transformers' names to segment_anything's, for the decoder alone.
RENAMED = [
    ("layer_norm_final_attn", "norm_final_attn"), ("layer_norm", "norm"),
    ("upscale_conv1", "output_upscaling.0"), ("upscale_norm", "output_upscaling.1"),
    ("upscale_conv2", "output_upscaling.3"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = sam_config_from_dicts({}, {}, {}).mask_decoder_config
    ours = MaskDecoder(config).eval()
    plain = SamMaskDecoder(config).eval()
    plain.load_state_dict(ours.state_dict())
    peer = _peer(ours)
    embedding, position = torch.randn(2, 1, 256, 64, 64).unbind()
    dense = torch.randn(1, 256, 1, 1).expand(1, 256, 64, 64)
    sparse = torch.randn(options.prompts, 2, 256)

    def ours_iou() -> Tensor:
        tokens, _ = ours.fuse(embedding, sparse, dense, position)
        return ours.predict_iou(tokens)[:, 1:]

    def ours_one_by_one() -> Tensor:
        found = [ours.fuse(embedding, one, dense, position)[0] for one in sparse.split(1)]
        return torch.cat([ours.predict_iou(tokens)[:, 1:] for tokens in found])

    def ours_masks() -> Tensor:
        return ours.predict_masks(*ours.fuse(embedding, sparse, dense, position))[:, 1:]

    def transformers_masks() -> Tensor:
        masks, _ = plain(embedding, position, sparse[None], dense, multimask_output=True)
        return masks[0]

    def segment_anything_masks() -> Tensor:
        masks, _ = peer(
            embedding, position, sparse, dense.expand(options.prompts, -1, -1, -1), True
        )
        return masks

    sides: dict[str, Callable[[], Tensor]] = {
        "ours, predicted IoU only": ours_iou,
        "ours, predicted IoU only, one prompt at a time": ours_one_by_one,
        "ours, all masks too": ours_masks,
        "transformers": transformers_masks,
        "segment_anything": segment_anything_masks,
    }
    with torch.inference_mode():
        expected = transformers_masks()
        for name in ("ours, all masks too", "segment_anything"):
            error = ((sides[name]() - expected).abs().max() / expected.abs().max()).item()
            print(f"{name}: largest difference from transformers {error:.1e} of the largest logit")
            assert error < 1e-4
        torch.testing.assert_close(ours_one_by_one(), ours_iou(), rtol=1e-4, atol=1e-4)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, side in sides.items():
                begun = time.perf_counter()
                side()
                times[name].append((time.perf_counter() - begun) / options.prompts * 1e3)
    print(
        f"\n{platform.machine()}, {options.threads} threads, float32, {options.prompts} prompts of "
        f"one image, {options.repeats} rounds, torch {torch.__version__}\n"
    )
    print("| side | ms per prompt (median) | times ours with masks (median, min-max) |")
    print("| --- | --- | --- |")
    for name, measured in times.items():
        ratios = [a / b for a, b in zip(measured, times["ours, all masks too"], strict=True)]
        print(
            f"| {name} | {statistics.median(measured):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


def _peer(ours: MaskDecoder) -> nn.Module:
    peer = PeerDecoder(
        transformer_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    ).eval()
    for module in peer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # transformers' in the blocks
    peer.transformer.norm_final_attn.eps = 1e-5
    renamed = {}
    for name, value in ours.state_dict().items():
        name = name.replace("upscale_layer_norm", "upscale_norm")
        for theirs, own in RENAMED:
            name = name.replace(theirs, own)
        for head in ("iou_prediction_head", "output_hypernetworks_mlps"):
            if name.startswith(head):
                name = name.replace("layers.0", "layers.1").replace("proj_in", "layers.0")
                name = name.replace("proj_out", "layers.2")
        renamed[name] = value
    peer.load_state_dict(renamed)
    return peer


if __name__ == "__main__":
    main()
