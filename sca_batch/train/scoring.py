"""How good a model is on composed scenes: masks against alpha, captions against names."""

# Shape letters:  R regions of one image   M SAM's three masks   Y, X pixels of the scene

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.boxes import to_model_frame
from sca_batch.images import preprocess
from sca_batch.model.sca import ScaModel
from sca_batch.train.art import Art, Concept
from sca_batch.train.phrases import caption_subject
from sca_batch.train.scenes import Scene

__all__ = ["RegionScore", "names_concept", "score_scene", "summarise"]


@dataclass(frozen=True, slots=True)
class RegionScore:
    """One object, prompted with its own box, and once with a point inside it.

    IoUs are at the scene's resolution: of the mask with the highest predicted IoU of SAM's
    three, of the best of the three, of the single mask, and of the point's highest predicted.
    """

    concept: str
    style: str
    caption: str
    named: bool
    area_share: float
    box_iou: float
    box_iou_best: float
    box_iou_single: float
    box_iou_predicted: float
    point_iou: float
    point_iou_predicted: float


@torch.inference_mode()
def score_scene(
    model: ScaModel, scene: Scene, art: Art, *, num_beams: int = 1
) -> list[RegionScore]:
    """Prompts every object of a scene with its box, and with one point drawn from its seed."""
    assert model.tokenizer is not None, "a model that is scored has a tokenizer"
    size_hw = scene.image.shape[0], scene.image.shape[1]
    size = model.config.image_size
    embedding = model.encode_image(torch.from_numpy(preprocess(scene.image, size))[None])
    boxes_R4 = torch.from_numpy(to_model_frame(scene.boxes_xyxy, size_hw, size))
    points_xy = _points(scene)
    points_R12 = torch.from_numpy(to_model_frame(points_xy, size_hw, size))[:, None]
    truth_RYX = torch.from_numpy(scene.masks)

    from_boxes = model.region_queries(embedding, boxes_R4=boxes_R4, with_masks=True)
    tokens, features = model.fuse_prompts(embedding, points_RP2=points_R12)
    box_iou_RM = _iou(from_boxes.masks, truth_RYX)
    point_iou_RM = _iou(model.predict_masks(tokens, features), truth_RYX)
    box_guess_RM, point_guess_RM = from_boxes.iou[:, 1:], model.predict_iou(tokens)[:, 1:]
    box_best_R, point_best_R = box_guess_RM.argmax(dim=1), point_guess_RM.argmax(dim=1)
    captions = model.generate(from_boxes.queries, num_beams=num_beams)
    scores = []
    for r, concept in enumerate(scene.concepts):
        caption = model.tokenizer.decode(captions[r][0][0].ids)
        box, point = int(box_best_R[r]), int(point_best_R[r])
        scores.append(
            RegionScore(
                concept=concept,
                style=scene.styles[r],
                caption=caption,
                named=names_concept(caption, art.concept_by_label[concept]),
                area_share=float(scene.masks[r].mean()),
                box_iou=float(box_iou_RM[r, 1 + box]),
                box_iou_best=float(box_iou_RM[r, 1:].max()),
                box_iou_single=float(box_iou_RM[r, 0]),
                box_iou_predicted=float(box_guess_RM[r, box]),
                point_iou=float(point_iou_RM[r, 1 + point]),
                point_iou_predicted=float(point_guess_RM[r, point]),
            )
        )
    return scores


def names_concept(caption: str, concept: Concept) -> bool:
    """Whether the caption's subject has the concept's label or a synonym as whole words.

    What stands beside or behind the subject does not count, nor does a name inside the longer
    name of another concept: `a movie camera` is no camera.
    """
    subject = caption_subject(caption.strip())
    for longer in concept.longer_names:
        if longer in subject:  # most are not, and a pattern for each would take its time
            subject = re.sub(_whole(longer), "|", subject)
    return any(re.search(_whole(name), subject) is not None for name in concept.names)


def _whole(name: str) -> str:
    # A hyphen joins words: a yo-yo is no yo, a t-shirt no shirt.
    return rf"(?<![\w-]){re.escape(name)}(?![\w-])"


def summarise(scores: Iterable[RegionScore]) -> dict[str, float]:
    """Means over all regions."""
    rows = list(scores)

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    return {
        "regions": len(rows),
        "concepts": len({row.concept for row in rows}),
        "named": mean("named"),
        "box_iou": mean("box_iou"),
        "box_iou_best": mean("box_iou_best"),
        "box_iou_single": mean("box_iou_single"),
        "box_iou_predicted": mean("box_iou_predicted"),
        "point_iou": mean("point_iou"),
        "point_iou_predicted": mean("point_iou_predicted"),
    }


def _points(scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    rng = np.random.default_rng(scene.seed)
    points = []
    for mask in scene.masks:
        ys, xs = np.nonzero(mask)
        k = int(rng.integers(len(xs)))
        points.append((float(xs[k]), float(ys[k])))
    return np.array(points)


def _iou(logits_RMHW: Tensor | None, truth_RYX: Tensor) -> Tensor:
    assert logits_RMHW is not None
    # A scene is square: the model's frame has no padding to cut off.
    masks_RMYX = (
        nn.functional.interpolate(
            logits_RMHW, truth_RYX.shape[-2:], mode="bilinear", align_corners=False
        )
        > 0
    )
    truth = truth_RYX[:, None]
    inter = (masks_RMYX & truth).sum(dim=(2, 3)).float()
    union = (masks_RMYX | truth).sum(dim=(2, 3)).float()
    return inter / union.clamp(min=1)
