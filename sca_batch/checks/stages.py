"""The stages of a model, computed from a recording's inputs in a recording's shapes."""

# Shape letters:  B images   N regions per image   R = B * N   S pixels of the square input
#                 P points in one prompt   L caption ids   D, H, W image embedding

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sca_batch.checks.generation import GenerateSettings
from sca_batch.model.sca import ScaModel, caption_loss
from sca_batch.model.timm_encoder import TimmEncoder

__all__ = ["GENERATED", "STAGES", "Inputs", "generate_ids", "run_stages"]

# Every stage with its absolute tolerance: what a rebuild of the published model in float32, on
# another release of its libraries, met with room.
STAGES: dict[str, float] = {
    "timm_features": 1e-5,
    "image_embeddings": 1e-5,
    "image_positional_embeddings": 1e-5,
    "sparse_prompt_embeddings": 1e-5,
    "dense_prompt_embeddings": 1e-5,
    "sam_tokens_out": 3e-4,
    "low_res_masks": 3e-4,
    "iou_scores": 3e-4,
    "low_res_masks_single": 3e-4,
    "iou_scores_single": 3e-4,
    "query_embeddings": 3e-4,
    "projected_query": 1e-3,
    "lm_inputs_embeds": 1e-3,
    "lm_attention_mask": 0.0,
    "lm_logits": 3e-3,
    "loss": 1e-4,
}
# What `generate` returns beside ids.
GENERATED: dict[str, float] = {
    "iou_scores": 3e-4,
    "query_logits": 3e-4,
    "projected_query_logits": 1e-3,
}
_MASK_STAGES = frozenset(["low_res_masks", "low_res_masks_single"])
_FORCED_STAGES = frozenset(["lm_inputs_embeds", "lm_attention_mask", "lm_logits", "loss"])
_QUERY_STAGES = _FORCED_STAGES | {"query_embeddings", "projected_query"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors that stages are computed from, on the model's device.

    `pixels` are (B, 3, S, S); an `embedding` (B, D, H, W) may stand for them. `tasks` and the
    `prompts`, arguments of `encode_prompts`, have one row per region, image by image. Captions to
    be teacher-forced are `ids`, `attention` and `labels`, all (R, L), the labels without the extra
    -100 that the reference puts in front.
    """

    num_images: int
    num_regions: int  # per image
    tasks: list[str]
    pixels: Tensor | None = None
    embedding: Tensor | None = None
    prompts: dict[str, Tensor] = field(default_factory=dict)
    ids: Tensor | None = None
    attention: Tensor | None = None
    labels: Tensor | None = None


@torch.inference_mode()
def run_stages(model: ScaModel, inputs: Inputs, *, wanted: frozenset[str]) -> dict[str, Tensor]:
    """The wanted stages, as far as the inputs allow them, on the CPU.

    `generate.*` entries are what `generate` returns beside ids. Later stages are computed from
    earlier ones, so more may come back than was wanted.
    """
    out = {"image_positional_embeddings": model.position_code()}
    embedding_BDHW = inputs.embedding
    if inputs.pixels is not None:
        embedding_BDHW = out["image_embeddings"] = model.encode_image(inputs.pixels)
        if isinstance(model.vision_encoder, TimmEncoder):
            # The reference's embeddings are still on the grid of the backbone.
            features = out["timm_features"] = model.vision_encoder.features(inputs.pixels)
            out["image_embeddings"] = model.vision_encoder.project(features)
    if embedding_BDHW is not None and inputs.prompts.keys() & {"boxes_R4", "points_RP2"}:
        out |= _region_stages(model, inputs, embedding_BDHW, wanted)
    return {name: value.cpu() for name, value in out.items()}


def _region_stages(
    model: ScaModel, inputs: Inputs, embedding_BDHW: Tensor, wanted: frozenset[str]
) -> dict[str, Tensor]:

    def by_image(value_R: Tensor) -> Tensor:
        return value_R.reshape(inputs.num_images, inputs.num_regions, *value_R.shape[1:])

    sparse_RSD, dense = model.encode_prompts(**inputs.prompts)
    image_R = torch.arange(inputs.num_images, device=model.device)
    image_R = image_R.repeat_interleave(inputs.num_regions)
    tokens_RTD, features_RND = model.fuse_prompts(embedding_BDHW, image_R=image_R, **inputs.prompts)
    iou = by_image(model.predict_iou(tokens_RTD))
    out = {
        "sparse_prompt_embeddings": by_image(sparse_RSD),
        "dense_prompt_embeddings": dense,
        "sam_tokens_out": by_image(tokens_RTD),
        "iou_scores": iou[..., 1:],
        "iou_scores_single": iou[..., :1],
        "generate.iou_scores": iou[..., 1:],
    }
    if wanted & _MASK_STAGES:
        masks = by_image(
            model.predict_masks(tokens_RTD, features_RND, embedding_BDHW, image_R=image_R)
        )
        out |= {"low_res_masks": masks[:, :, 1:], "low_res_masks_single": masks[:, :, :1]}
    if wanted & _QUERY_STAGES:
        queries_RCQD = model.mix(tokens_RTD, features_RND)
        prefix = model.prefix(queries_RCQD, inputs.tasks)
        by_head = (inputs.num_images, inputs.num_regions, model.config.num_caption_heads, 1, -1)
        out |= {
            "query_embeddings": by_image(queries_RCQD),
            "projected_query": prefix[:, model.config.num_task_tokens :],
            "generate.query_logits": queries_RCQD.reshape(by_head),
            "generate.projected_query_logits": prefix.reshape(by_head),
        }
        if wanted & _FORCED_STAGES:
            out |= _forced_stages(model, inputs, prefix)
    return out


def _forced_stages(model: ScaModel, inputs: Inputs, prefix_RPE: Tensor) -> dict[str, Tensor]:
    if inputs.ids is None or inputs.attention is None or inputs.labels is None:
        return {}
    ids, attention, labels = (
        value.repeat_interleave(model.config.num_caption_heads, dim=0)
        for value in (inputs.ids, inputs.attention, inputs.labels)
    )
    logits, embeds = model.caption_logits(prefix_RPE, ids, attention)
    of_prefix = attention.new_ones(prefix_RPE.shape[:2])
    return {
        "lm_inputs_embeds": embeds,
        "lm_attention_mask": torch.cat([of_prefix, attention], dim=1),
        "lm_logits": logits,
        "loss": caption_loss(logits, labels).reshape(1),
    }


def generate_ids(
    model: ScaModel, stages: Mapping[str, Tensor], inputs: Inputs, settings: GenerateSettings
) -> list[tuple[int, ...]]:
    """The best caption's ids for each region and head, the end id included where reached.

    None at all where logits are not finite: no beam has a score then.
    """
    found = model.generate(
        stages["query_embeddings"].flatten(0, 1).to(model.device),
        tasks=inputs.tasks,
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
    )
    return [beams[0].ids if beams else () for heads in found for beams in heads]
