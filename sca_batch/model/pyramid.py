"""A convolutional image encoder from timm for small models: features of several levels, one grid.

SAM's plain ViT needs far more images than a small model ever sees. A convolutional backbone that
starts from ImageNet carries over what it knows of edges and things, and a feature pyramid
(arXiv:1612.03144) brings its levels to the one grid that SAM's decoder reads.
"""

# Shape letters:  B images   S pixels of the square input   C channels of one level
#                 D, H, W image embedding   E = D, or 4 D with high-res features

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.sam.modeling_sam import SamLayerNorm

from sca_batch.errors import ScaError
from sca_batch.model.config import ScaConfig
from sca_batch.model.sam import pack_cells
from sca_batch.model.timm_encoder import create_timm

__all__ = ["PyramidEncoder", "fold_batch_norms"]


class PyramidEncoder(nn.Module):
    """Pixels as SAM sees them -> (B, E, H, W), from the levels that `config.timm_levels` names.

    Levels that are finer than half a cell of the grid are for high-res features alone.

    Batch norms are folded into the convolutions before them: training fine-tunes a network
    without running statistics, and nothing depends on who else is in a batch.
    """

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        self.backbone = create_timm(
            config.timm_vision_name,
            pretrained=False,
            features_only=True,
            out_indices=config.timm_levels,
        )
        fold_batch_norms(self.backbone)
        # A bias that came out of a norm is frozen by torch's folding.
        self.backbone.requires_grad_(True)
        width, cell = config.width, config.image_size // config.grid_size
        info = self.backbone.feature_info
        levels = list(zip(info.channels(), info.reduction(), strict=True))
        has_high_res = config.embedding_width > width
        if has_high_res and [stride for _, stride in levels[:2]] != [cell // 4, cell // 2]:
            raise ScaError(
                f"{config.timm_vision_name} with its level 0: expected strides of {cell // 4} and "
                f"{cell // 2} pixels first, a quarter and half of a cell"
            )
        self.high_res = HighResFeatures(levels[0][0], levels[1][0], width) if has_high_res else None
        self.num_fine = int(has_high_res)
        levels = levels[self.num_fine :]
        self.factors = [stride / cell for _, stride in levels]
        self.laterals = nn.ModuleList(
            _lateral(channels, width, stride, cell) for channels, stride in levels
        )
        # From here on as SAM's neck: normalised, a 3 x 3 convolution, normalised.
        self.layer_norm1 = SamLayerNorm(width, data_format="channels_first")
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.layer_norm2 = SamLayerNorm(width, data_format="channels_first")

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        total: Tensor | None = None
        found = self.backbone(pixels_B3SS)
        # From the coarsest: a sum of ever finer levels.
        levels = list(zip(self.laterals, self.factors, found[self.num_fine :], strict=True))
        for lateral, factor, level_BCHW in reversed(levels):
            part_BDHW = lateral(level_BCHW)
            if factor > 1:
                part_BDHW = nn.functional.interpolate(
                    part_BDHW, scale_factor=factor, mode="bilinear", align_corners=False
                )
            total = part_BDHW if total is None else total + part_BDHW
        assert total is not None, "expected at least one level"
        embedding_BDHW: Tensor = self.layer_norm2(self.conv(self.layer_norm1(total)))
        if self.high_res is None:
            return embedding_BDHW
        return torch.cat([embedding_BDHW, *self.high_res(embedding_BDHW, *found[:2])], dim=1)


class HighResFeatures(nn.Module):
    """Features that a mask's edges need, at twice and four times the grid's resolution, by cell.

    As in SAM 2 (arXiv:2408.00714, appendix D.1) they are added where masks are upscaled. Here each
    is a level of the backbone that sees the next coarser one too, and a 3 x 3 convolution.
    """

    def __init__(self, quarter_channels: int, half_channels: int, width: int) -> None:
        super().__init__()
        widths = [width // 4, width // 8]
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, out, 1)
            for channels, out in zip((half_channels, quarter_channels), widths, strict=True)
        )
        self.coarser = nn.ModuleList(
            nn.Conv2d(channels, out, 1)
            for channels, out in zip((width, widths[0]), widths, strict=True)
        )
        self.norms = nn.ModuleList(
            SamLayerNorm(out, data_format="channels_first") for out in widths
        )
        self.convs = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for out in widths)

    def forward(
        self, embedding_BDHW: Tensor, quarter_BCYX: Tensor, half_BCYX: Tensor
    ) -> tuple[Tensor, Tensor]:
        packed = []
        coarser = embedding_BDHW
        parts = zip(self.laterals, self.coarser, self.norms, self.convs, strict=True)
        for doublings, (level, (lateral, project, norm, conv)) in enumerate(
            zip((half_BCYX, quarter_BCYX), parts, strict=True), start=1
        ):
            above = nn.functional.interpolate(
                project(coarser), scale_factor=2.0, mode="bilinear", align_corners=False
            )
            coarser = nn.functional.relu(norm(lateral(level) + above))
            packed.append(pack_cells(conv(coarser), doublings))
        return packed[0], packed[1]


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


def _lateral(channels: int, width: int, stride: int, cell: int) -> nn.Conv2d:
    """To the common width; a finer level is read by blocks, so that no edge is lost."""
    block = max(cell // stride, 1)
    return nn.Conv2d(channels, width, block, stride=block)
