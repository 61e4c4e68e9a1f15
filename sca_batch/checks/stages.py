"""The stages of a model, computed from a recording's inputs in a recording's shapes."""

# Shape letters:  B images   N regions per image   R = B * N   S pixels of the square input
#                 P points in one prompt   L caption ids   D, H, W image embedding

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sca_batch.model.sam import encode_prompts
from sca_batch.model.sca import ScaModel, caption_loss

__all__ = ["GENERATED", "STAGES", "Inputs", "generate_ids", "run_stages"]

# Every stage with its absolute tolerance: what a rebuild of the published model in float32, on
# another release of its libraries, met with room. The ids of a caption must be equal.
STAGES: dict[str, float] = {
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
GENERATED: dict[str, float] = {"iou_scores": 3e-4, "query_logits": 3e-4, "projected_query_logits": 1e-3}

_LM_STAGES = ("lm_inputs_embeds", "lm_attention_mask", "lm_logits", "loss")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the stages are computed from, on the model's device; prompts are one row per region."""

    num_images: int
    num_regions: int  # per image
    tasks_R: list[str]
    pixels_B3SS: Tensor | None = None
    embedding_BDHW: Tensor | None = None
    prompts: dict[str, Tensor] = field(default_factory=dict)
    ids_RL: Tensor | None = None
    attention_RL: Tensor | None = None
    labels_RL: Tensor | None = None


@torch.inference_mode()
def run_stages(model: ScaModel, inputs: Inputs, *, wanted: frozenset[str]) -> dict[str, Tensor]:
    """Every wanted stage that the inputs allow, on the CPU, in a recording's shapes.

    `generate.*` entries are what `generate` returns beside ids. Later stages are computed from
    earlier ones, so more may come back than was wanted.
    """
    out: dict[str, Tensor] = {}
    out["image_positional_embeddings"] = model.position_code()
    embedding = inputs.embedding_BDHW
    if inputs.pixels_B3SS is not None:
        embedding = model.encode_image(inputs.pixels_B3SS)
        out["image_embeddings"] = embedding
    if embedding is None or not {"boxes_R4", "points_RP2"} & inputs.prompts.keys():
        return {name: value.cpu() for name, value in out.items()}

    def by_image(value_R: Tensor) -> Tensor:
        return value_R.reshape(inputs.num_images, inputs.num_regions, *value_R.shape[1:])

    image_R = torch.arange(inputs.num_images, device=model.device)
    image_R = image_R.repeat_interleave(inputs.num_regions)
    sparse, dense = encode_prompts(model.prompt_encoder, **inputs.prompts)
    out["sparse_prompt_embeddings"] = by_image(sparse)
    if len(dense) == 1:
        out["dense_prompt_embeddings"] = dense.expand(inputs.num_images, -1, -1, -1)
    else:
        out["dense_prompt_embeddings"] = dense
    tokens, features = model.fuse_prompts(embedding, image_R=image_R, **inputs.prompts)
    out["sam_tokens_out"] = by_image(tokens)
    iou = by_image(model.predict_iou(tokens))
    out["iou_scores"], out["iou_scores_single"] = iou[..., 1:], iou[..., :1]
    out["generate.iou_scores"] = iou[..., 1:]
    if wanted & {"low_res_masks", "low_res_masks_single"}:
        masks = by_image(model.predict_masks(tokens, features))
        out["low_res_masks"], out["low_res_masks_single"] = masks[:, :, 1:], masks[:, :, :1]
    if wanted & {"query_embeddings", "projected_query", *_LM_STAGES}:
        queries = model.mix(tokens, features)
        prefix = model.prefix(queries, inputs.tasks_R)
        heads, num_tasks = model.config.num_caption_heads, model.config.num_task_tokens
        out["query_embeddings"] = by_image(queries)
        out["projected_query"] = prefix[:, num_tasks:]
        by_head = (inputs.num_images, inputs.num_regions, heads, 1, -1)
        out["generate.query_logits"] = queries.reshape(by_head)
        out["generate.projected_query_logits"] = prefix.reshape(by_head)
        if wanted & set(_LM_STAGES) and inputs.ids_RL is not None:
            out |= _teacher_forced(model, inputs, prefix)
    return {name: value.cpu() for name, value in out.items()}


def _teacher_forced(model: ScaModel, inputs: Inputs, prefix: Tensor) -> dict[str, Tensor]:
    assert inputs.ids_RL is not None
    assert inputs.attention_RL is not None
    assert inputs.labels_RL is not None
    heads = model.config.num_caption_heads
    ids, attention, labels = (
        value.repeat_interleave(heads, dim=0)
        for value in (inputs.ids_RL, inputs.attention_RL, inputs.labels_RL)
    )
    logits, embeds = model.caption_logits(prefix, ids, attention)
    return {
        "lm_inputs_embeds": embeds,
        "lm_attention_mask": torch.cat([attention.new_ones(prefix.shape[:2]), attention], dim=1),
        "lm_logits": logits,
        "loss": caption_loss(logits, labels).reshape(1),
    }


def generate_ids(
    model: ScaModel, ours: Mapping[str, Tensor], inputs: Inputs, num_beams: int, new_tokens: int
) -> list[tuple[int, ...]]:
    """The best caption's ids for every region and head, the end id included where it was reached."""
    queries = ours["query_embeddings"].flatten(0, 1).to(model.device)
    found = model.generate(
        queries, tasks=inputs.tasks_R, num_beams=num_beams, max_new_tokens=new_tokens
    )
    return [beams[0].ids for heads in found for beams in heads]


