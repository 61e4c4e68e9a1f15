"""A convolutional image encoder from timm for small models: features of several levels, one grid.

SAM's plain ViT needs far more images than a small model ever sees. A convolutional backbone that
starts from ImageNet carries over what it knows of edges and things, and a feature pyramid
(arXiv:1612.03144) brings its levels to the one grid that SAM's decoder reads.
"""

# Shape letters:  B images   S pixels of the square input   C channels of one level
#                 D, H, W image embedding

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.sam.modeling_sam import SamLayerNorm

from sca_batch.errors import ScaError
from sca_batch.model.config import ScaConfig
from sca_batch.model.timm_encoder import create_timm

__all__ = ["PyramidEncoder", "fold_batch_norms"]


class PyramidEncoder(nn.Module):
    """Pixels as SAM sees them -> (B, D, H, W), from the levels that `config.timm_levels` names.

    Batch norms are folded into the convolutions before them: training fine-tunes a network
    without running statistics, and nothing depends on who else is in a batch.
    """

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        self.backbone = _create_levels(config.timm_vision_name, config.timm_levels)
        width, cell = config.width, config.image_size // config.grid_size
        strides = self.backbone.feature_info.reduction()
        self.factors = [stride / cell for stride in strides]
        self.laterals = nn.ModuleList(
            _lateral(channels, width, stride, cell)
            for channels, stride in zip(self.backbone.feature_info.channels(), strides, strict=True)
        )
        # From here on as SAM's neck: normalised, a 3 x 3 convolution, normalised.
        self.layer_norm1 = SamLayerNorm(width, data_format="channels_first")
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.layer_norm2 = SamLayerNorm(width, data_format="channels_first")

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        total: Tensor | None = None
        # From the coarsest: a sum of ever finer levels.
        levels = list(zip(self.laterals, self.factors, self.backbone(pixels_B3SS), strict=True))
        for lateral, factor, level_BCHW in reversed(levels):
            part_BDHW = lateral(level_BCHW)
            if factor > 1:
                part_BDHW = nn.functional.interpolate(
                    part_BDHW, scale_factor=factor, mode="bilinear", align_corners=False
                )
            total = part_BDHW if total is None else total + part_BDHW
        assert total is not None, "expected at least one level"
        embedding_BDHW: Tensor = self.layer_norm2(self.conv(self.layer_norm1(total)))
        return embedding_BDHW


def fold_batch_norms(module: nn.Module) -> None:
    """Replaces each convolution and the batch norm behind it by one convolution, in place.

    What follows the norm inside it (timm keeps the activation there) stays.

    Raises:
        ScaError: a batch norm does not stand right behind a convolution.
    """
    children = list(module.named_children())
    for (conv_name, conv), (norm_name, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, conv_name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
            setattr(module, norm_name, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        fold_batch_norms(child)
        if isinstance(child, nn.BatchNorm2d):
            raise ScaError("a batch norm of the backbone has no convolution before it")


def _create_levels(name: str, levels: tuple[int, ...]) -> Any:
    backbone = create_timm(name, pretrained=False, features_only=True, out_indices=levels)
    fold_batch_norms(backbone)
    # A bias that came out of a norm is frozen by torch's folding.
    return backbone.requires_grad_(True)


def _lateral(channels: int, width: int, stride: int, cell: int) -> nn.Conv2d:
    """To the common width; a finer level is read by blocks, so that no edge is lost."""
    block = max(cell // stride, 1)
    return nn.Conv2d(channels, width, block, stride=block)
