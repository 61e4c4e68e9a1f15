"""Weights that a small SAM starts from: ImageNet in the backbone, draws everywhere else."""

from __future__ import annotations

import math

import torch
from torch import nn

from sca_batch.model.pyramid import PyramidEncoder
from sca_batch.model.sca import PromptableSam
from sca_tiny.sam.imagenet import load_imagenet

__all__ = ["initialise_sam"]


def initialise_sam(sam: PromptableSam, seed: int) -> None:
    """Fills an empty SAM in place; its image encoder is a `PyramidEncoder`.

    Torch's defaults in the pyramid and the mask decoder, as in segment_anything, drawn from
    `seed`; the position code is fixed, as Fourier features are.
    """
    assert isinstance(sam.vision_encoder, PyramidEncoder), "expected a convolutional encoder"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in sam.named_modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if name.startswith("vision_encoder.backbone") or not isinstance(weight, nn.Parameter):
                continue
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(weight)
            elif isinstance(module, nn.Embedding):
                # Prompt tokens are added to position codes of unit size per channel.
                nn.init.trunc_normal_(weight, std=0.7, a=-2, b=2, generator=generator)
            else:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(weight, -bound, bound, generator=generator)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)
        high_res = sam.vision_encoder.high_res
        if high_res is not None:
            # Masks begin without them, so that a SAM that had none can go on.
            for conv in high_res.convs:
                nn.init.zeros_(conv.get_parameter("weight"))
        code = sam.prompt_encoder.shared_embedding.positional_embedding
        # Never trained, so in no checkpoint of a run: whoever goes on from one draws it again, and
        # it must not hang on how many layers are drawn before it.
        code.copy_(torch.randn(code.shape, generator=torch.Generator().manual_seed(seed)))
        code.requires_grad_(False)
    load_imagenet(sam.vision_encoder, sam.config.timm_vision_name)
