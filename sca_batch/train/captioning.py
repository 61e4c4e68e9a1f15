"""The loss that the paper trains with: captions of regions, nothing else."""

# Shape letters:  B images   R regions, image by image   D, H, W image embedding
#                 L caption ids   C caption heads   X = R * C   P prefix   E language model's width

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sca_batch.model.sca import ScaModel, caption_loss

__all__ = ["prefix_caption_loss", "region_caption_loss"]


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
    prefix_XPE = model.prefix(model.mix(tokens_RTD, features_RND), tasks)
    return prefix_caption_loss(model, prefix_XPE, ids_RL, attention_RL, label_smoothing)


def prefix_caption_loss(
    model: ScaModel,
    prefix_XPE: Tensor,
    ids_RL: Tensor,
    attention_RL: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of captions behind their prefixes, the same caption for every head."""
    heads = model.config.num_caption_heads
    ids_XL, attention_XL = (x.repeat_interleave(heads, dim=0) for x in (ids_RL, attention_RL))
    logits, _ = model.caption_logits(prefix_XPE, ids_XL, attention_XL)
    labels_XL = ids_XL.masked_fill(attention_XL == 0, -100)
    return caption_loss(logits, labels_XL, label_smoothing=label_smoothing)
