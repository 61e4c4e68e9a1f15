"""Recipes of the bundled model's stages: every number with its reason or source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sca_batch.model.config import ScaConfig, config_from_dict

__all__ = ["TINY_SAM", "SamRecipe", "SamSizes"]


@dataclass(frozen=True, slots=True)
class SamSizes:
    """Sizes of a small SAM on a convolutional backbone of timm."""

    image_size: int = 256
    cell: int = 8  # pixels of one cell of the embedding: masks then have 128 cells a side
    backbone: str = "tf_efficientnet_lite0"  # 3.4 M without its head; no squeeze, plain ReLU6
    levels: tuple[int, ...] = (1, 2, 3, 4)  # strides 4, 8, 16, 32
    prompt_width: int = 128
    decoder_layers: int = 2  # SAM's
    decoder_heads: int = 4  # 16 channels a head, as in SAM
    decoder_mlp: int = 512

    def config(self, text: dict[str, Any] | None = None, *, mixer_layers: int = 2) -> ScaConfig:
        """The configuration, through the published form of config.json."""
        raw: dict[str, Any] = {
            "architectures": ["ScaTimmPyramidModel"],
            "timm_vision_name": self.backbone,
            "timm_levels": list(self.levels),
            "num_task_tokens": 6,
            "vision_config": {
                "output_channels": self.prompt_width,
                "image_size": self.image_size,
                "patch_size": self.cell,
                "num_pos_feats": self.prompt_width // 2,
            },
            "prompt_encoder_config": {
                "hidden_size": self.prompt_width,
                "image_size": self.image_size,
                "patch_size": self.cell,
                "mask_input_channels": 16,
                "num_point_embeddings": 4,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
            },
            "mask_caption_decoder_config": {
                "hidden_size": self.prompt_width,
                "hidden_act": "relu",
                "mlp_dim": self.decoder_mlp,
                "num_hidden_layers": self.decoder_layers,
                "num_attention_heads": self.decoder_heads,
                "attention_downsample_rate": 2,
                "num_multimask_outputs": 3,
                "iou_head_depth": 3,
                "iou_head_hidden_dim": self.prompt_width,
                "layer_norm_eps": 1e-6,
                "additional_num_hidden_layers": mixer_layers,
                "num_caption_tokens": 8,
                "num_caption_heads": 1,
            },
            "text_config": text or {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 1},
        }
        return config_from_dict(raw, where="recipe")


@dataclass(frozen=True, slots=True)
class SamRecipe:
    """Stage 1: a small SAM. Rates are per step, counts per image unless the name says otherwise."""

    name: str = "tiny-sam"
    sizes: SamSizes = field(default_factory=SamSizes)
    seed: int = 42  # the reference code's

    steps: int = 4_000
    # The first steps see dense scenes and learn names alone: an object without a mask to decode
    # costs an eighth.
    naming_steps: int = 1_500
    naming_images_per_step: int = 16
    images_per_step: int = 8  # many small steps: data is endless, time is not
    dense_images_per_step: int = 3  # of these: more names an image
    boxes_per_image: int = 2
    points_per_image: int = 2
    background_points_per_image: int = 1

    # Boxes of automatic masks are off by a pixel or two; given ones by more.
    box_jitter: float = 0.05
    exact_boxes: float = 0.3

    # The first of the backbone's stages stay as ImageNet made them: edges and textures are the
    # same everywhere, and they take most of the time of a step for a twentieth of the weights.
    frozen_stages: int = 3
    lr: float = 1e-3
    backbone_lr_factor: float = 0.5  # it starts from ImageNet, the rest from nothing
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    # SAM, appendix A: focal 20 : dice 1, IoU 1.
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    other_masks_weight: float = 0.2
    label_weight: float = 0.3
    label_smoothing: float = 0.1

    bf16: bool = True


TINY_SAM = SamRecipe()
