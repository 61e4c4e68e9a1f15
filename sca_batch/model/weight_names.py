"""Names of tensors: ours, those of published checkpoints, and those of segment_anything."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "LEGACY", "LM_EMBEDDING", "LM_HEAD", "NOT_SAM", "POSITION", "POSITION_TWIN", "TRAINED",
    "own_name", "own_sam_name", "published_counts", "published_name",
]  # fmt: skip

# Ours, as published. Everything else has the published name already.
_PREFIXES = (
    ("mixer.queries.", "mask_decoder.caption_tokens."),
    ("mixer.transformer.", "mask_decoder.additional_transformer."),
    ("projection.", "language_project."),
    ("vision_encoder.backbone.", "timm_vision_encoder."),
    ("vision_encoder.projector.", "neck."),
)
# What the paper trains, under published names; the neck stands behind a timm backbone.
TRAINED = ("mask_decoder.caption_tokens.", "mask_decoder.additional_transformer.",
            "language_project.", "task_tokens.", "neck.")  # fmt: skip
POSITION = "prompt_encoder.shared_embedding.positional_embedding"
POSITION_TWIN = "shared_image_embedding.positional_embedding"
LM_HEAD = "language_model.lm_head.weight"
LM_EMBEDDING = {
    "gpt2": "language_model.transformer.wte.weight",
    "llama": "language_model.model.embed_tokens.weight",
}
# What older releases of transformers stored and newer ones recompute.
LEGACY = re.compile(
    r"^language_model\..*(\.rotary_emb\.inv_freq|\.h\.\d+\.attn\.(bias|masked_bias))$"
)
NOT_SAM = (*TRAINED, "language_model.")

# segment_anything's names, as transformers spells them (its own conversion script does the same).
_SEGMENT_ANYTHING = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^(vision_encoder)\.blocks\.", r"\1.layers."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", POSITION),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
)


def published_name(name: str) -> str:
    """The published name of one of our parameters."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def own_name(name: str) -> str:
    """Our name of a published one."""
    for ours, theirs in _PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def own_sam_name(name: str) -> str:
    """A tensor's name in segment_anything's files, as it is called here."""
    for pattern, replacement in _SEGMENT_ANYTHING:
        name = re.sub(pattern, replacement, name)
    return name


def published_counts(sizes: Mapping[str, int], *, tied: bool) -> tuple[int, int]:
    """All parameters of a checkpoint and the trainable ones, from the sizes of its tensors.

    Counted as the published implementation does: a tied head once, the position code not at all (a
    buffer there). `tied` is what config.json says of the language model's embedding and head.
    """
    kept = {
        name: size
        for name, size in sizes.items()
        if name not in (POSITION, POSITION_TWIN) and not LEGACY.match(name)
    }
    if tied and any(name in kept for name in LM_EMBEDDING.values()):
        kept.pop(LM_HEAD, None)
    trained = (size for name, size in kept.items() if name.startswith(TRAINED))
    return sum(kept.values()), sum(trained)
