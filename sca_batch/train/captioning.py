"""The loss that the paper trains with: captions of regions, nothing else."""

# Shape letters:  B images   R regions, image by image   D, H, W image embedding
#                 L caption ids   C caption heads

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sca_batch.model.sca import ScaModel, caption_loss

__all__ = ["region_caption_loss"]


def region_caption_loss(
    model: ScaModel,
    embedding_BDHW: Tensor,
    *,
    image_R: Tensor,
    prompts: Mapping[str, Tensor],
    ids_RL: Tensor,
    attention_RL: Tensor,
    tasks: Sequence[str],
    label_smoothing: float = 0.1,
) -> Tensor:
    """Cross entropy of the regions' captions, the mean over all tokens of the batch.

    `prompts` are arguments of `encode_prompts`; `tasks` has one entry per region. Where SAM's own
    two-way transformer is frozen, no gradient is kept for it.
    """
    frozen = not embedding_BDHW.requires_grad and not any(
        parameter.requires_grad
        for part in (model.prompt_encoder, model.mask_decoder)
        for parameter in part.parameters()
    )
    with torch.no_grad() if frozen else contextlib.nullcontext():
        tokens_RTD, features_RND = model.fuse_prompts(embedding_BDHW, image_R=image_R, **prompts)
    prefix_XPE = model.prefix(model.mix(tokens_RTD, features_RND), tasks)  # X = R * C
    heads = model.config.num_caption_heads
    ids, attention = (value.repeat_interleave(heads, dim=0) for value in (ids_RL, attention_RL))
    logits, _ = model.caption_logits(prefix_XPE, ids, attention)
    labels = ids.masked_fill(attention == 0, -100)
    return caption_loss(logits, labels, label_smoothing=label_smoothing)
