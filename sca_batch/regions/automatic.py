"""SAM's automatic mask generation: a grid of points, and what is good and not said twice.

The algorithm of `segment_anything.SamAutomaticMaskGenerator`, with its options, order and
results. What differs is when things are done: masks are upscaled only for prompts whose predicted
IoU passes, the image embedding is shared with captioning, and memory is bounded by bytes.
"""

# Shape letters:  P points of one batch, one prompt each   T tokens, N image tokens, D width
#                 M candidate masks   H, W embedding grid, or pixels of a mask

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.utils.amg import (
    build_all_layer_point_grids,
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
    uncrop_masks,
)
from torch import Tensor
from torchvision.ops.boxes import batched_nms, box_area

from sca_batch.boxes import (
    mask_to_rle,
    resized_size,
    rle_area,
    rle_box_xyxy,
    rle_to_mask,
    to_model_frame,
)
from sca_batch.images.pixels import preprocess
from sca_batch.model.sca import ScaModel
from sca_batch.records import Region, Rle
from sca_batch.regions.fused import FusedBatch, fused_batches
from sca_batch.regions.masks import (
    FIRST_OF_THREE,
    encode_masks,
    mask_logits,
    stability_scores,
)
from sca_batch.regions.proposal import ModelPrompt, Proposal
from sca_batch.regions.settings import AutomaticMaskSettings

__all__ = ["propose_regions"]

Floats = npt.NDArray[np.float64]
CropBox = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """One mask on its way to becoming a region, in the frame of the whole image."""

    rle: Rle
    box_xyxy: tuple[float, float, float, float]  # SAM's: x1 and y1 are the last pixel
    predicted_iou: float
    stability_score: float
    point_xy: tuple[float, float]
    crop_box: CropBox
    prompt: ModelPrompt


@dataclass(frozen=True, slots=True, eq=False)
class _Crop:
    """One crop of the image (or all of it), ready to be prompted; points in its own pixels."""

    box: CropBox
    embedding: Tensor
    points_xy: Floats
    model_points_xy: Floats
    prompts: list[ModelPrompt]  # one for each point, shared by its masks

    @property
    def size_hw(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


@torch.inference_mode()
def propose_regions(
    model: ScaModel,
    rgb: npt.NDArray[np.uint8],
    embedding_1DHW: Tensor | None,
    settings: AutomaticMaskSettings,
    *,
    mask_memory_bytes: int = 1 << 30,
    keep_crop_embeddings: bool = False,
) -> list[Proposal]:
    """The regions that SAM finds in an image by itself, in SAM's order.

    Regions found with one grid point share one prompt object.

    Args:
        rgb: the EXIF-oriented image, uint8 (H, W, 3).
        embedding_1DHW: its embedding, where the caller has it; it is encoded here otherwise.
        mask_memory_bytes: about how much masks may take at a time, at least one at a time.
        keep_crop_embeddings: keep the embedding of each crop with the regions found in it, which
            captioning by point needs.
    """
    image_h, image_w = rgb.shape[:2]
    if embedding_1DHW is None:
        embedding_1DHW = _encode(model, rgb)
    grids = build_all_layer_point_grids(
        settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
    )
    crops = _crop_boxes((image_h, image_w), settings, model.config.image_size)
    candidates: list[_Candidate] = []
    for box, layer in crops:
        x0, y0, x1, y1 = box
        crop_hw = (y1 - y0, x1 - x0)
        points = grids[layer] * np.array([crop_hw[1], crop_hw[0]])
        embedding = embedding_1DHW if layer == 0 else _encode(model, rgb[y0:y1, x0:x1])
        kept_embedding = embedding if layer and keep_crop_embeddings else None
        model_points = to_model_frame(points, crop_hw, model.config.image_size)
        crop = _Crop(
            box=box,
            embedding=embedding,
            points_xy=points,
            model_points_xy=model_points,
            prompts=[
                ModelPrompt(points_xy=((x, y),), labels=(1,), crop_embedding=kept_embedding)
                for x, y in model_points.tolist()
            ],
        )
        found = [
            candidate
            for batch in fused_batches(
                model, crop.embedding, crop.model_points_xy, settings.points_per_batch
            )
            for candidate in _survivors(
                model, crop, batch, settings, (image_h, image_w), mask_memory_bytes
            )
        ]
        scores = torch.tensor([c.predicted_iou for c in found], dtype=torch.float32)
        candidates += [found[i] for i in _nms(found, scores, settings.box_nms_thresh)]
    if len(crops) > 1:
        areas = box_area(torch.tensor([c.crop_box for c in candidates]).reshape(-1, 4))
        # Smaller crops see more of a region, so theirs win.
        kept = _nms(candidates, 1 / areas, settings.crop_nms_thresh)
        candidates = [candidates[i] for i in kept]
    if settings.min_mask_region_area > 0:
        candidates = _without_small_parts(candidates, settings)
    return [_proposal(candidate) for candidate in candidates]


def _encode(model: ScaModel, rgb: npt.NDArray[np.uint8]) -> Tensor:
    pixels_3SS = torch.from_numpy(preprocess(rgb, model.config.image_size))
    return model.encode_image(pixels_3SS[None].to(model.device))


def _crop_boxes(
    size_hw: tuple[int, int], settings: AutomaticMaskSettings, image_size: int
) -> list[tuple[CropBox, int]]:
    """SAM's crops and their layers, without those that hold no pixel of a very thin image."""
    boxes, layers = generate_crop_boxes(
        size_hw, settings.crop_n_layers, settings.crop_overlap_ratio
    )
    return [
        ((x0, y0, x1, y1), layer)
        for (x0, y0, x1, y1), layer in zip(boxes, layers, strict=True)
        if layer == 0
        or (min(y1 - y0, x1 - x0) > 0 and min(resized_size((y1 - y0, x1 - x0), image_size)) > 0)
    ]


def _survivors(
    model: ScaModel,
    crop: _Crop,
    batch: FusedBatch,
    settings: AutomaticMaskSettings,
    image_hw: tuple[int, int],
    mask_memory_bytes: int,
) -> Iterator[_Candidate]:
    """Candidates of one batch of points after all thresholds, point by point, mask by mask."""
    iou_P3 = batch.iou()
    passed = iou_P3 > settings.pred_iou_thresh
    # As in SAM, a threshold of 0 turns the filter off instead of asking for a positive estimate.
    point_M, which_M = np.nonzero(passed | (settings.pred_iou_thresh <= 0))
    for chunk, logits_MHW in mask_logits(
        model,
        batch.tokens,
        batch.features,
        crop.embedding,
        prompt_M=point_M,
        mask_M=which_M + FIRST_OF_THREE,
        size_hw=crop.size_hw,
        mask_memory_bytes=mask_memory_bytes,
        # Uncropped, transposed, and compared with their neighbours.
        pixels_beside=0 if crop.size_hw == image_hw else 3 * image_hw[0] * image_hw[1],
    ):
        stability = stability_scores(logits_MHW, settings.stability_score_offset).cpu()
        stable = stability >= settings.stability_score_thresh
        if settings.stability_score_thresh <= 0:
            stable = torch.ones_like(stable)
        masks_MHW = logits_MHW[stable.nonzero()[:, 0].to(model.device)] > 0
        rles = encode_masks(uncrop_masks(masks_MHW, list(crop.box), *image_hw))
        boxes = _inclusive_boxes(rles, crop.box)
        near_edge = _near_crop_edge(boxes, crop.box, image_hw)
        scores = stability[stable].tolist()
        for i, (m, rle) in enumerate(zip(chunk[stable.numpy()], rles, strict=True)):
            if near_edge[i]:
                continue
            point = batch.first_point + int(point_M[m])
            x, y = crop.points_xy[point].tolist()
            x0, y0, x1, y1 = boxes[i].tolist()
            yield _Candidate(
                rle=rle,
                box_xyxy=(x0, y0, x1, y1),
                predicted_iou=float(iou_P3[point_M[m], which_M[m]]),
                stability_score=scores[i],
                point_xy=(x + crop.box[0], y + crop.box[1]),
                crop_box=crop.box,
                prompt=crop.prompts[point],
            )


def _inclusive_boxes(rles: list[Rle], crop_box: CropBox) -> Floats:
    """SAM's boxes (M, 4): x1 and y1 are the last pixel; an empty mask has the crop's corner."""
    boxes: Floats = np.array([rle_box_xyxy(rle) for rle in rles]).reshape(-1, 4) - [0, 0, 1, 1]
    empty = np.array([rle_area(rle) == 0 for rle in rles], dtype=bool)
    boxes[empty] = [*crop_box[:2], *crop_box[:2]]
    return boxes


def _near_crop_edge(
    boxes: Floats, crop_box: CropBox, image_hw: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Cut off by the crop, perhaps: at an edge of the crop that is not an edge of the image."""
    x0, y0, _, _ = crop_box
    in_crop = torch.from_numpy(boxes - [x0, y0, x0, y0])
    image_box = [0, 0, image_hw[1], image_hw[0]]
    near: npt.NDArray[np.bool_] = is_box_near_crop_edge(in_crop, list(crop_box), image_box).numpy()
    return near


def _nms(candidates: list[_Candidate], scores: Tensor, iou_threshold: float) -> list[int]:
    """Indices of the boxes that are kept, the best first."""
    if not candidates:
        return []
    boxes = torch.tensor([c.box_xyxy for c in candidates], dtype=torch.float32)
    one_category = torch.zeros(len(boxes))
    # torchvision's batched form rather than `nms`: above 1,000 boxes it breaks ties its own way.
    kept: list[int] = batched_nms(boxes, scores, one_category, iou_threshold).tolist()
    return kept


def _without_small_parts(
    candidates: list[_Candidate], settings: AutomaticMaskSettings
) -> list[_Candidate]:
    """Fills small holes, drops small islands, and removes what has become a duplicate."""
    cleaned: list[_Candidate] = []
    unchanged: list[float] = []
    for candidate in candidates:
        mask, filled = remove_small_regions(
            rle_to_mask(candidate.rle), settings.min_mask_region_area, mode="holes"
        )
        mask, dropped = remove_small_regions(mask, settings.min_mask_region_area, mode="islands")
        rle = mask_to_rle(mask) if filled or dropped else candidate.rle
        x0, y0, x1, y1 = _inclusive_boxes([rle], (0, 0, 0, 0))[0].tolist()
        cleaned.append(replace(candidate, rle=rle, box_xyxy=(x0, y0, x1, y1)))
        unchanged.append(float(not (filled or dropped)))
    threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
    return [cleaned[i] for i in _nms(cleaned, torch.tensor(unchanged), threshold)]


def _proposal(candidate: _Candidate) -> Proposal:
    x0, y0, x1, y1 = candidate.crop_box
    region = Region(
        box_xyxy=rle_box_xyxy(candidate.rle),
        area=rle_area(candidate.rle),
        prompt_type="grid_point",
        mask_rle=candidate.rle,
        predicted_iou=candidate.predicted_iou,
        stability_score=candidate.stability_score,
        points_xy=(candidate.point_xy,),
        crop_box_xywh=(float(x0), float(y0), float(x1 - x0), float(y1 - y0)),
    )
    return Proposal(region, candidate.prompt)
