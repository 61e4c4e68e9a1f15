"""Weights of a model that is trained from nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sca_batch.model.sca import ScaModel

__all__ = ["initialise"]


def initialise(model: ScaModel, seed: int) -> None:
    """Fills an empty model: transformers' own initialisation leaves SAM's encoder at zero.

    Truncated normal 0.02 in the encoder (ViT), 0.02 with scaled residuals in the language model
    (GPT-2), torch's defaults in the mask decoder and the mixer, as in segment_anything.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        nn.init.trunc_normal_(tensor, std=std, a=-3 * std, b=3 * std, generator=generator)

    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            bias = getattr(module, "bias", None)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
                continue
            if not isinstance(weight, Tensor):
                continue
            if name.startswith(("vision_encoder.layers", "vision_encoder.patch", "language_model")):
                normal(weight, 0.02)
            elif isinstance(module, nn.Embedding):
                # Prompt and query tokens are added to position codes of unit size per channel.
                normal(weight, 0.02 if name == "task_tokens" else 0.7)
            else:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(weight, -bound, bound, generator=generator)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        layers = model.language_model.config.num_hidden_layers
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed"):
                normal(parameter, 0.02)
            elif "rel_pos" in name:
                nn.init.zeros_(parameter)
            elif name.startswith("language_model") and name.endswith("c_proj.weight"):
                normal(parameter, 0.02 / math.sqrt(2 * layers))
            elif name.endswith("positional_embedding"):
                # SAM's scale of 1 is for a grid of 64; for one of 16 a code twice as coarse would
                # do, but small objects are placed better with a finer one.
                parameter.copy_(1.5 * torch.randn(parameter.shape, generator=generator))
                parameter.requires_grad_(False)  # fixed in SAM, as in Fourier features
