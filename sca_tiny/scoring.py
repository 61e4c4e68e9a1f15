"""Scores of a model on composed scenes: masks against alpha, captions against names."""

# Shape letters:  R regions of one image   M SAM's three masks   Y, X pixels of the scene

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.boxes import to_model_frame
from sca_batch.images.pixels import preprocess
from sca_batch.model.sca import PromptableSam, ScaModel
from sca_tiny.scenes.art import Art
from sca_tiny.scenes.compose import Scene
from sca_tiny.scenes.phrases import caption_subject
from sca_tiny.scenes.words import Concept

__all__ = [
    "CaptionScore",
    "MaskScore",
    "mean_of",
    "names_concept",
    "score_captions_of",
    "score_masks",
]


@dataclass(frozen=True, slots=True)
class MaskScore:
    """One object, prompted with its own box, and once with a point inside it.

    IoUs are at the scene's resolution: of the mask with the highest predicted IoU of SAM's
    three, of the best of the three, of the single mask, and of the point's highest predicted.
    """

    area_share: float
    box_iou: float
    box_iou_best: float
    box_iou_single: float
    box_iou_predicted: float
    point_iou: float
    point_iou_predicted: float


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """The caption of one object, given its box."""

    concept: str
    style: str
    caption: str
    references: tuple[str, ...]
    named: bool
    log_probability: float  # of the caption, as its search ranks it


@torch.inference_mode()
def score_masks(sam: PromptableSam, scene: Scene) -> list[MaskScore]:
    """Prompts every object of a scene with its box, and with one point drawn from its seed."""
    size_hw = scene.image.shape[0], scene.image.shape[1]
    size = sam.config.image_size
    pixels, boxes_R4, points_RP2, truth_RYX = (
        torch.from_numpy(values).to(sam.device)
        for values in (
            preprocess(scene.image, size)[None],
            to_model_frame(scene.boxes_xyxy, size_hw, size),
            to_model_frame(_points(scene), size_hw, size)[:, None],
            scene.masks,
        )
    )
    embedding = sam.encode_image(pixels)
    found = []
    for prompts in ({"boxes_R4": boxes_R4}, {"points_RP2": points_RP2}):
        tokens, features = sam.fuse_prompts(embedding, **prompts)
        iou_RM = _iou(sam.predict_masks(tokens, features, embedding), truth_RYX)
        found.append((iou_RM, sam.predict_iou(tokens)[:, 1:]))
    (box_iou_RM, box_guess_RM), (point_iou_RM, point_guess_RM) = found
    scores = []
    for r in range(len(scene.masks)):
        box, point = int(box_guess_RM[r].argmax()), int(point_guess_RM[r].argmax())
        scores.append(
            MaskScore(
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


@torch.inference_mode()
def score_captions_of(
    model: ScaModel, scene: Scene, art: Art, *, num_beams: int = 1
) -> list[CaptionScore]:
    """Captions every object of a scene from its box."""
    assert model.tokenizer is not None, "a model that is scored has a tokenizer"
    size_hw = scene.image.shape[0], scene.image.shape[1]
    size = model.config.image_size
    pixels = torch.from_numpy(preprocess(scene.image, size))[None]
    boxes_R4 = torch.from_numpy(to_model_frame(scene.boxes_xyxy, size_hw, size))
    embedding = model.encode_image(pixels.to(model.device))
    queries = model.region_queries(embedding, boxes_R4=boxes_R4.to(model.device)).queries
    captions = model.generate(queries, num_beams=num_beams)
    scores = []
    for r, concept in enumerate(scene.concepts):
        caption = model.tokenizer.decode(captions[r][0][0].ids)
        scores.append(
            CaptionScore(
                concept=concept,
                style=scene.styles[r],
                caption=caption,
                references=scene.captions[r],
                named=names_concept(caption, art.concept_by_label[concept]),
                log_probability=captions[r][0][0].logprob,
            )
        )
    return scores


def names_concept(caption: str, concept: Concept) -> bool:
    """True where the caption's subject has the concept's label or a synonym as whole words.

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


def mean_of(scores: Sequence[object], name: str) -> float:
    """The mean of one field over all regions."""
    return float(np.mean([getattr(row, name) for row in scores]))


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
