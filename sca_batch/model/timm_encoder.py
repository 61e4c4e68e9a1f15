"""A timm backbone instead of SAM's image encoder: the paper's ablation of encoders."""

# Shape letters:  B images   S pixels of the square input   C channels of the backbone
#                 G cells of the backbone's grid   D, H, W image embedding

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamVisionNeck

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.model.config import ScaConfig

__all__ = ["TimmEncoder", "create_timm", "pretrained_timm_state"]


class TimmEncoder(nn.Module):
    """Pixels as SAM sees them -> (B, D, H, W), as class `ScaTimmMultitaskV2Model` computes it.

    The square input is brought to the backbone's own size by the nearest pixel and is not
    normalised anew; the last block's patch tokens pass a neck like SAM's, and the nearest cell
    brings them to the grid of the prompts.
    """

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        self.backbone = create_timm(config.timm_vision_name, pretrained=False)
        # Not `neck`: published names tell this one from that of SAM's encoder, and so must ours.
        self.projector = SamVisionNeck(config.sam.vision_config)
        self.name = config.timm_vision_name
        self.grid_size = config.grid_size
        self.input_size: tuple[int, int] = tuple(self.backbone.pretrained_cfg["input_size"][-2:])
        if self.backbone.num_features != config.sam.vision_config.hidden_size:
            raise ScaError(
                f"timm model {config.timm_vision_name} is {self.backbone.num_features} wide, but "
                f"vision_config says {config.sam.vision_config.hidden_size}"
            )

    def features(self, pixels_B3SS: Tensor) -> Tensor:
        """Features of the backbone, on its own grid, (B, C, G, G)."""
        pixels = nn.functional.interpolate(pixels_B3SS, self.input_size)  # nearest
        frozen = not next(self.backbone.parameters()).requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens_BXC: Tensor = self.backbone.forward_features(pixels)
        patches_BGC = tokens_BXC[:, self.backbone.num_prefix_tokens :]
        side = round(patches_BGC.shape[1] ** 0.5)
        return patches_BGC.transpose(1, 2).reshape(patches_BGC.shape[0], -1, side, side)

    def project(self, features_BCGG: Tensor) -> Tensor:
        """The neck: (B, D, G, G)."""
        projected: Tensor = self.projector(features_BCGG.permute(0, 2, 3, 1))
        return projected

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return self.to_grid(self.project(self.features(pixels_B3SS)))

    def to_grid(self, projected_BDGG: Tensor) -> Tensor:
        """The nearest cell of the backbone's grid for each of the prompts' grid."""
        return nn.functional.interpolate(projected_BDGG, (self.grid_size, self.grid_size))

    def restore_buffers(self) -> None:
        """Recomputes what checkpoints do not hold (rotary codes), after building without memory."""
        lacking = [name for name, buffer in self.backbone.named_buffers() if buffer.is_meta]
        if not lacking:
            return
        fresh = create_timm(self.name, pretrained=False)
        for name in lacking:
            owner, _, leaf = name.rpartition(".")
            buffer = fresh.get_buffer(name)
            self.backbone.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)


def pretrained_timm_state(name: str) -> dict[str, Tensor]:
    """Published weights of a timm model, under the names they have in an SCA checkpoint."""
    backbone = create_timm(name, pretrained=True)
    return {f"timm_vision_encoder.{key}": value for key, value in backbone.state_dict().items()}


def create_timm(name: str, *, pretrained: bool, **settings: object) -> Any:  # timm's classes
    """A model of timm by its name.

    Raises:
        ScaError: timm is not installed, does not know the name, or cannot fetch the weights.
    """
    try:
        import timm
    except ImportError:
        raise MissingPackageError("timm", f"the image encoder {name}") from None
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except RuntimeError as error:  # what timm raises for a name it does not know
        raise ScaError(f"timm model {name!r}: {error}") from None
    except (OSError, ValueError) as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())
        raise ScaError(f"timm model {name!r}: its weights could not be fetched: {reason}") from None
