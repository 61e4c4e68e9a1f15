"""What a step of SAM's training is judged by: masks, the IoU head, and the names of things."""

# Shape letters:  N visible objects   K prompts, boxes first, then points   M masks (4)
#                 B images   D prompt width   H, W embedding grid; masks here are 4H, 4W

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sca_batch.model.config import ScaConfig
from sca_batch.model.sam import encode_prompts
from sca_batch.model.sca import PromptableSam
from sca_batch.train.sam_batches import BACKGROUND, SamBatch
from sca_batch.train.tiny_recipes import SamRecipe

__all__ = ["StepLosses", "build_classifiers", "mask_losses", "sam_losses"]

OWN_TOKENS = 5  # of SAM's decoder, before the prompt's: one for the IoU, four for the masks


@dataclass(frozen=True, slots=True)
class StepLosses:
    """The weighted sum that is minimised, and its parts before they are weighted."""

    total: Tensor
    parts: dict[str, Tensor]


def build_classifiers(config: ScaConfig, num_labels: int, seed: int) -> nn.ModuleDict:
    """Linear classifiers for training only: of the embedding, and of the decoder's own tokens."""
    widths = {"embedding": config.width, "tokens": config.width * OWN_TOKENS}
    generator = torch.Generator().manual_seed(seed)
    classifiers = nn.ModuleDict()
    for name, width in widths.items():
        classifiers[name] = linear = nn.Linear(width, num_labels)
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
        nn.init.zeros_(linear.bias)
    return classifiers


def sam_losses(
    sam: PromptableSam, classifiers: nn.ModuleDict, batch: SamBatch, recipe: SamRecipe
) -> StepLosses:
    """One forward pass: every image encoded once, all prompts decoded."""
    embedding_BDHW = sam.encode_image(batch.pixels_B3SS)
    with sam.autocast():
        sparse_box, dense = encode_prompts(sam.prompt_encoder, boxes_R4=batch.boxes_R4)
        sparse_point, _ = encode_prompts(sam.prompt_encoder, points_RP2=batch.points_P2[:, None])
        # A box is two tokens, and so is a lone point with SAM's padding point: one batch.
        image_K = torch.cat([batch.image_R, batch.image_P])
        tokens_KTD, features_KND = sam.mask_decoder.fuse(
            embedding_BDHW.index_select(0, image_K),
            torch.cat([sparse_box, sparse_point]),
            dense,
            sam.position_code(),
        )
    tokens_KTD, features_KND = tokens_KTD.float(), features_KND.float()
    object_K = torch.cat([batch.object_R, batch.object_P])
    cover_NHW = batch.cover_NHW.float() / 255
    focal, dice, iou = mask_losses(
        sam.predict_masks(tokens_KTD, features_KND),
        sam.predict_iou(tokens_KTD),
        cover_NHW,
        object_K,
        other_masks_weight=recipe.other_masks_weight,
    )
    parts = {"focal": focal, "dice": dice, "iou": iou}
    weights = {
        "focal": recipe.focal_weight,
        "dice": recipe.dice_weight,
        "iou": recipe.iou_weight,
    }
    if recipe.label_weight:
        on_object = object_K != BACKGROUND
        stations = {
            "embedding": (pooled_embedding(embedding_BDHW, cover_NHW, batch.image_N),
                          batch.label_N),
            "tokens": (
                tokens_KTD[on_object, :OWN_TOKENS].flatten(1),
                batch.label_N[object_K[on_object]],
            ),
        }  # fmt: skip
        for name, (features, labels) in stations.items():
            parts[f"label_{name}"] = nn.functional.cross_entropy(
                classifiers[name](features), labels
            )
            weights[f"label_{name}"] = recipe.label_weight
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return StepLosses(total, parts)


def mask_losses(
    logits_KMHW: Tensor,
    iou_KM: Tensor,
    cover_NHW: Tensor,
    object_K: Tensor,
    *,
    other_masks_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal and dice loss of the masks, and the squared error of the IoU head.

    The single mask (index 0) always counts; of the three others the best one does, and the rest
    with a small weight. Targets are shares of cells and not bits, so that a threshold at zero of
    the enlarged logits falls between cells where the object's edge does. Background prompts have
    no mask to learn: the IoU of whatever they give is to be said to be zero, which is what keeps
    automatic mask generation from proposing it.
    """
    on_object = object_K != BACKGROUND
    target_KHW = cover_NHW[object_K[on_object]]
    logits = logits_KMHW[on_object].flatten(2)
    target = target_KHW.flatten(1)[:, None].expand_as(logits)
    chance = logits.sigmoid()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # The focal loss of RetinaNet with gamma 2, for targets between 0 and 1.
    focal_KM = ((chance - target).square() * entropy).mean(dim=-1)
    overlap = (chance * target).sum(dim=-1)
    dice_KM = 1 - (2 * overlap + 1) / (chance.sum(dim=-1) + target.sum(dim=-1) + 1)

    with torch.no_grad():
        best_K = (20 * focal_KM + dice_KM)[:, 1:].argmin(dim=-1)
        weight_KM = torch.full_like(focal_KM, other_masks_weight)
        weight_KM[:, 0] = 1.0
        weight_KM[:, 1:].scatter_(1, best_K[:, None], 1.0)
        truth_KM = torch.zeros_like(iou_KM)
        truth_KM[on_object] = soft_iou(logits, target)
    num = max(int(on_object.sum()), 1)
    focal = (weight_KM * focal_KM).sum() / num
    dice = (weight_KM * dice_KM).sum() / num
    return focal, dice, nn.functional.mse_loss(iou_KM, truth_KM)


def soft_iou(logits_KMX: Tensor, cover_KMX: Tensor) -> Tensor:
    """The IoU that a mask will have at full resolution, estimated from its cells, (K, M).

    A logit within a cell of the edge stands for a partly covered cell; counting whole cells
    would be far off for objects of a few cells.
    """
    share = logits_KMX.sigmoid()
    smaller, larger = torch.minimum(share, cover_KMX), torch.maximum(share, cover_KMX)
    return smaller.sum(dim=-1) / larger.sum(dim=-1).clamp(min=1e-6)


def pooled_embedding(embedding_BDHW: Tensor, cover_NHW: Tensor, image_N: Tensor) -> Tensor:
    """The embedding's mean inside each visible mask, (N, D)."""
    grid = embedding_BDHW.shape[-1]
    cover_NX = nn.functional.adaptive_avg_pool2d(cover_NHW[:, None], grid).flatten(1)
    cover_NX = cover_NX / cover_NX.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("nx,ndx->nd", cover_NX, embedding_BDHW.flatten(2)[image_N])
