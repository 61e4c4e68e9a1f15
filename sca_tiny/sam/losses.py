"""The losses of SAM's training: masks, the IoU head, and the names of things."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  B images   P prompts of an image, boxes first, then points   K = B * P
#                 M those that mean an object   N visible objects of all images, by image
#                 C masks of a prompt (4)   Y, X = 4H, 4W low-res masks; X alone: their cells
#                 S tokens of a prompt   T tokens of SAM's decoder   D prompt width
#                 H, W embedding grid   E = D, or 4 D with high-res features

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sca_batch.images.pixels import PIXEL_MEAN, PIXEL_STD
from sca_batch.model.config import ScaConfig
from sca_batch.model.sam import MaskDecoder, encode_prompts
from sca_batch.model.sca import PromptableSam
from sca_batch.train.task import Losses
from sca_tiny.recipes import SamRecipe
from sca_tiny.sam.batches import BACKGROUND, SamBatch
from sca_tiny.sam.geometry import NUM_OUTPUTS, geometry_losses, in_rows

__all__ = [
    "as_pixels", "build_classifiers", "cells_of", "mask_losses", "pooled_embedding",
    "predict_cells", "sam_losses",
]  # fmt: skip

OWN_TOKENS = 5  # of SAM's decoder, before the prompt's: one for the IoU, four for the masks


def build_classifiers(config: ScaConfig, num_labels: int, seed: int) -> nn.ModuleDict:
    """Linear layers for training only.

    Names are read from the embedding and from the decoder's own tokens, shapes from the embedding.
    """
    sizes = {
        "embedding": (config.width, num_labels),
        "tokens": (config.width * OWN_TOKENS, num_labels),
        "geometry": (config.embedding_width, NUM_OUTPUTS),
    }
    generator = torch.Generator().manual_seed(seed)
    classifiers = nn.ModuleDict()
    for name, (width, num) in sizes.items():
        classifiers[name] = linear = nn.Linear(width, num)
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
        nn.init.zeros_(linear.bias)
    return classifiers


def sam_losses(
    sam: PromptableSam, classifiers: nn.ModuleDict, batch: SamBatch, recipe: SamRecipe
) -> Losses:
    """One forward pass: every image encoded once, all prompts decoded if there are any."""
    embedding_BEHW = sam.encode_image(as_pixels(batch.images_BSS3))
    cover_NYX = batch.cover_NYX.float() / 255
    parts: dict[str, Tensor] = {}
    named: dict[str, tuple[Tensor, Tensor]] = {}
    if recipe.label_weight:
        pooled_ND = pooled_embedding(
            embedding_BEHW[:, : sam.config.width], cover_NYX, batch.image_N
        )
        named["embedding"] = pooled_ND, batch.label_N
    if recipe.geometry_weight:
        parts |= geometry_losses(classifiers["geometry"], embedding_BEHW, cover_NYX, batch.image_N)
    if len(batch.boxes_R4):
        decoded = _decoded(sam, embedding_BEHW, cover_NYX, batch, recipe)
        parts |= decoded.parts
        named["tokens"] = decoded.tokens_MX, batch.label_N[decoded.object_M]
    weights = {
        "focal": recipe.focal_weight,
        "dice": recipe.dice_weight,
        "iou": recipe.iou_weight,
        **dict.fromkeys(("covered", "joined", "sides"), recipe.geometry_weight),
    }
    if recipe.label_weight:
        for station, (features, labels) in named.items():
            parts[f"label_{station}"] = nn.functional.cross_entropy(
                classifiers[station](features), labels, label_smoothing=recipe.label_smoothing
            )
            weights[f"label_{station}"] = recipe.label_weight
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return Losses(total, parts)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """SAM's losses, and the decoder's own tokens of the prompts that mean an object."""

    parts: dict[str, Tensor]
    tokens_MX: Tensor
    object_M: Tensor


def _decoded(
    sam: PromptableSam,
    embedding_BEHW: Tensor,
    cover_NYX: Tensor,
    batch: SamBatch,
    recipe: SamRecipe,
) -> _Decoded:
    num_images = len(batch.object_BP)  # the others give names alone
    object_K = batch.object_BP.flatten()
    on_object_K = object_K != BACKGROUND
    with sam.autocast():
        sparse_box, dense = encode_prompts(sam.prompt_encoder, boxes_R4=batch.boxes_R4)
        sparse_point, _ = encode_prompts(sam.prompt_encoder, points_RP2=batch.points_P2[:, None])
        # A box is two tokens, and so is a lone point with SAM's padding point: one batch, and
        # every image has as many.
        by_image = [s.reshape(num_images, -1, *s.shape[1:]) for s in (sparse_box, sparse_point)]
        sparse_BPSD = torch.cat(by_image, dim=1)
        # High-res features stay out of the transformer's batch, where they would be copied about.
        num_prompts, width = sparse_BPSD.shape[1], sam.config.width
        image_BDHW = embedding_BEHW[:num_images, :width]
        high_res_BNF = embedding_BEHW[:num_images, width:].flatten(2).transpose(1, 2)
        tokens_KTD, features_KND = sam.mask_decoder.fuse(
            image_BDHW[:, None].expand(-1, num_prompts, -1, -1, -1).flatten(0, 1),
            sparse_BPSD.flatten(0, 1),
            dense,
            sam.position_code(),
            absorbed=True,  # half the time forward, also where its rows are a few more
        )
        meant = on_object_K.nonzero()[:, 0]
        tokens_MTD = tokens_KTD[meant]
        has_high_res = high_res_BNF.shape[-1] > 0
        logits_MXC = predict_cells(
            sam.mask_decoder,
            tokens_MTD,
            features_KND[meant],
            high_res_BNF.to(features_KND.dtype)[meant // num_prompts] if has_high_res else None,
        )
        iou_KC = sam.mask_decoder.predict_iou(tokens_KTD)
    object_M = object_K[meant]
    focal, dice, truth_MC = mask_losses(
        logits_MXC.float(),
        cells_of(cover_NYX[object_M]),
        other_masks_weight=recipe.other_masks_weight,
    )
    # A prompt on the background has no mask to learn: the IoU of whatever it gives is to be said
    # to be zero, which is what keeps automatic mask generation from proposing it.
    truth_KC = torch.zeros_like(iou_KC, dtype=torch.float32)
    truth_KC[meant] = truth_MC
    parts = {
        "focal": focal,
        "dice": dice,
        "iou": nn.functional.mse_loss(iou_KC.float(), truth_KC),
    }
    return _Decoded(parts, tokens_MTD[:, :OWN_TOKENS].flatten(1).float(), object_M)


def predict_cells(
    decoder: MaskDecoder,
    tokens_RTD: Tensor,
    features_RND: Tensor,
    high_res_RNF: Tensor | None = None,
) -> Tensor:
    """The logits of `decoder.predict_masks` cell by cell, (R, N * 16, M).

    A transposed convolution with a stride of its own size is a matrix product for each cell,
    and channels stay last; forward and backward take half the time of `predict_masks` on a
    CPU. `cells_of` brings a mask into the same order.
    """
    fused, width = features_RND, decoder.hidden_size
    finer: list[Tensor] = []
    if high_res_RNF is not None:
        finer = [high_res_RNF[..., :width], high_res_RNF[..., width:]]
    for conv in (decoder.upscale_conv1, decoder.upscale_conv2):
        width = conv.weight.shape[1]
        weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.weight.shape[0])
        fused = nn.functional.linear(fused, weight, conv.bias.repeat(len(weight) // width))
        fused = fused.reshape(len(fused), -1, width)
        if finer:
            fused = fused + finer.pop(0).reshape(fused.shape)
        if conv is decoder.upscale_conv1:
            norm = decoder.upscale_layer_norm
            fused = nn.functional.layer_norm(fused, (width,), norm.weight, norm.bias, norm.eps)
        fused = decoder.activation(fused)
    hyper_RMC = torch.stack(
        [mlp(tokens_RTD[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)],
        dim=1,
    )
    logits: Tensor = fused @ hyper_RMC.transpose(1, 2)
    return logits


def cells_of(masks_RYX: Tensor) -> Tensor:
    """Low-res masks (R, 4H, 4W) in the order of `predict_cells`, (R, N * 16)."""
    num, side = len(masks_RYX), masks_RYX.shape[-1] // 4
    parts = masks_RYX.reshape(num, side, 2, 2, side, 2, 2)  # y, y of 2, y of 4, x, x of 2, x of 4
    return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(num, -1)


def mask_losses(
    logits_MXC: Tensor, cover_MX: Tensor, *, other_masks_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal and dice loss of the masks, and what the IoU head is to say of them, (M, C).

    The single mask (index 0) always counts; of the three others the best one does, and the rest
    with a small weight. Targets are shares of cells and not bits, so that a threshold at zero of
    the enlarged logits falls between cells where the object's edge does.
    """
    target = cover_MX[..., None]
    chance = logits_MXC.sigmoid()
    entropy = nn.functional.binary_cross_entropy_with_logits(
        logits_MXC, target.expand_as(logits_MXC), reduction="none"
    )
    # The focal loss of RetinaNet with gamma 2, for targets between 0 and 1.
    focal_MC = ((chance - target).square() * entropy).mean(dim=1)
    overlap = (chance * target).sum(dim=1)
    dice_MC = 1 - (2 * overlap + 1) / (chance.sum(dim=1) + target.sum(dim=1) + 1)
    with torch.no_grad():
        best_M = (20 * focal_MC + dice_MC)[:, 1:].argmin(dim=-1)
        weight_MC = torch.full_like(focal_MC, other_masks_weight)
        weight_MC[:, 0] = 1.0
        weight_MC[:, 1:].scatter_(1, best_M[:, None], 1.0)
        # The IoU at full resolution, estimated from shares of cells: a logit within a cell of the
        # edge stands for a partly covered cell.
        smaller, larger = torch.minimum(chance, target), torch.maximum(chance, target)
        truth_MC = smaller.sum(dim=1) / larger.sum(dim=1).clamp(min=1e-6)
    num = max(len(logits_MXC), 1)
    return (weight_MC * focal_MC).sum() / num, (weight_MC * dice_MC).sum() / num, truth_MC


def pooled_embedding(embedding_BDHW: Tensor, cover_NYX: Tensor, image_N: Tensor) -> Tensor:
    """The embedding's mean inside each visible mask, (N, D)."""
    grid = embedding_BDHW.shape[-1]
    cover_NX = nn.functional.adaptive_avg_pool2d(cover_NYX[:, None], grid).flatten(1)
    cover_NX = cover_NX / cover_NX.sum(dim=1, keepdim=True).clamp(min=1e-6)
    # One product of all objects with all images' cells would be mostly zeros; this one keeps to
    # each object's image without copying the image for it.
    cover_BOX, row_N = in_rows(cover_NX, image_N, len(embedding_BDHW))
    return (cover_BOX @ embedding_BDHW.flatten(2).transpose(1, 2))[image_N, row_N]


def as_pixels(images_BSS3: Tensor) -> Tensor:
    """RGB uint8 as a model's input: `preprocess` of square images that need no resizing.

    Channels stay last in memory, as convolutions like them.
    """
    mean, std = (
        torch.from_numpy(values).to(images_BSS3.device) for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return ((images_BSS3.float() / 255 - mean) / std).permute(0, 3, 1, 2)
