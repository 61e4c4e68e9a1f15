"""Training recipes: every number of a run, with its reason or source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sca_batch.model.config import ScaConfig, config_from_dict

__all__ = ["RECIPES", "TINY", "ModelSizes", "Recipe"]


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model that is trained from nothing; the classes are the published ones."""

    image_size: int = 256
    patch_size: int = 16  # SAM's; masks then have a quarter of the side, 64
    encoder_width: int = 256
    encoder_layers: int = 8
    encoder_heads: int = 4  # 64 channels a head, as in ViT-B; fewer heads are faster on a CPU
    encoder_mlp: int = 1024
    window_size: int = 8
    global_layers: tuple[int, ...] = (3, 7)  # ViT-B has 4 of 12
    prompt_width: int = 128
    decoder_layers: int = 2  # SAM's
    decoder_heads: int = 8  # SAM's
    decoder_mlp: int = 256
    mixer_layers: int = 3
    caption_tokens: int = 8  # the published models'
    task_tokens: int = 6  # the published models'
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 3
    text_positions: int = 64  # 6 + 8 of prefix and 19 of caption fit

    def config(self, *, vocab_size: int, eos_token_id: int) -> ScaConfig:
        """The configuration, through the published form of config.json."""
        raw: dict[str, Any] = {
            "architectures": ["ScaMultitaskV2Model"],
            "num_task_tokens": self.task_tokens,
            "vision_config": {
                "hidden_size": self.encoder_width,
                "output_channels": self.prompt_width,
                "num_hidden_layers": self.encoder_layers,
                "num_attention_heads": self.encoder_heads,
                "num_channels": 3,
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
                "qkv_bias": True,
                "use_abs_pos": True,
                "use_rel_pos": True,
                "window_size": self.window_size,
                "global_attn_indexes": list(self.global_layers),
                "num_pos_feats": self.prompt_width // 2,
                "mlp_ratio": self.encoder_mlp / self.encoder_width,
                "mlp_dim": self.encoder_mlp,
            },
            "prompt_encoder_config": {
                "hidden_size": self.prompt_width,
                "image_size": self.image_size,
                "patch_size": self.patch_size,
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
                "additional_num_hidden_layers": self.mixer_layers,
                "num_caption_tokens": self.caption_tokens,
                "num_caption_heads": 1,
            },
            "text_config": {
                "model_type": "gpt2",
                "vocab_size": vocab_size,
                "n_positions": self.text_positions,
                "n_embd": self.text_width,
                "n_layer": self.text_layers,
                "n_head": self.text_heads,
                # No dropout: a scene is never seen twice.
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "bos_token_id": eos_token_id,
                "eos_token_id": eos_token_id,
            },
        }
        return config_from_dict(raw, where="recipe")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. Rates are per step, counts per image unless the name says otherwise."""

    name: str
    sizes: ModelSizes = field(default_factory=ModelSizes)
    seed: int = 42  # the reference code's

    steps: int = 6_100
    images_per_step: int = 8  # many small steps: data is endless, time is not
    boxes_per_image: int = 4
    points_per_image: int = 4
    background_points_per_image: int = 2
    captioned_points_per_image: int = 1

    # Boxes of automatic masks are off by a pixel or two; given ones by more.
    box_jitter: float = 0.05
    exact_boxes: float = 0.3
    simple_phrases: float = 0.4  # share of the first, plainest phrase; the rest is drawn evenly
    recognition_share: float = 0.1  # regions whose text is the bare label, task "recognition"
    tokenizer_scenes: int = 1_500
    vocab_size: int = 1_000  # an upper bound: merges stop at whole words

    lr: float = 7e-4
    warmup_steps: int = 200  # SCA's
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip_norm: float = 1.0  # SCA's; always reached, and Adam does not mind

    # SAM, appendix A, has focal 20 : dice 1. Masks of few cells stay blurred at this size, and the
    # best cut of a blurred mask lies below a chance of one half: that is what dice trains.
    focal_weight: float = 20.0
    dice_weight: float = 8.0
    iou_weight: float = 5.0
    # SAM trains only the best of the three masks, for prompts that mean several things. Here a
    # point on an object means what is seen of that object, and all three may learn it.
    other_masks_weight: float = 0.5
    caption_weight: float = 1.0
    label_smoothing: float = 0.1  # SCA's
    # Of each of the classifiers that help training and are thrown away: see losses.py.
    label_weight: float = 0.25

    validate_every: int = 400
    validation_scenes: int = 48
    calibration_scenes: int = 60
    checkpoint_every_s: float = 180.0
    bf16: bool = True


TINY = Recipe(name="tiny")
"""The bundled model, first version.

Unlike the paper, which freezes SAM and the language model, everything is trained at once from
random weights, and the image encoder sees the captions' gradients: there is no SAM of this size
whose features could carry the names of things. How far the bundled weights' own run differed from
this is in their model card.
"""

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (TINY,)}
