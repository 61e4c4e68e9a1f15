"""Judges a model on freshly composed held-out scenes, and prints the table of its model card.

    python benchmarks/tiny_quality.py --model sca_batch/assets/sca-tiny --scenes 300

Held-out compositions are new scenes of drawings in the training styles, one style a scene; the
held-out style is one that no training scene shows. Nothing here was trained or validated on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import defaultdict
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from sca_batch.boxes import rle_to_mask
from sca_batch.model.checkpoint import load_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.regions.automatic import propose_regions
from sca_batch.regions.settings import AutomaticMaskSettings
from sca_batch.train.validation import RegionCaption, score_captions, tokenised
from sca_tiny.scenes.art import HELD_OUT_STYLES, TRAIN_STYLES, Art, load_art
from sca_tiny.scenes.compose import HELD_OUT_FIRST_SEED, Scene, compose_scene
from sca_tiny.scoring import (
    CaptionScore,
    MaskScore,
    mean_of,
    score_captions_of,
    score_masks,
)

LEAST_VISIBLE = 0.01  # of the canvas: objects that automatic masks are expected to find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--scenes", type=int, default=300, help="of each kind")
    parser.add_argument("--automatic-scenes", type=int, default=50, help="of each kind; 0: none")
    parser.add_argument("--points-per-side", type=int, help="as sca caption")
    parser.add_argument("--pred-iou-thresh", type=float)
    parser.add_argument("--stability-score-thresh", type=float)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    art = load_art()
    model = load_checkpoint(arguments.model)
    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    given = {name: getattr(arguments, name) for name in names}
    settings = AutomaticMaskSettings.for_model(
        model.config, **{name: value for name, value in given.items() if value is not None}
    )
    results = {}
    for kind, styles in (("compositions", TRAIN_STYLES), ("style", HELD_OUT_STYLES)):
        begun = time.monotonic()
        scenes = held_out_scenes(art, styles, arguments.scenes)
        masks = [row for scene in scenes for row in score_masks(model, scene)]
        captions = [
            row
            for scene in scenes
            for row in score_captions_of(model, scene, art, num_beams=arguments.num_beams)
        ]
        results[kind] = summarised(masks, captions)
        if arguments.automatic_scenes:
            some = scenes[: arguments.automatic_scenes]
            results[kind] |= automatic_recall(model, some, settings)
        print(f"\nHeld-out {kind}, {len(scenes):,} scenes ({', '.join(styles)})")
        for name, value in results[kind].items():
            print(f"  {name:<28} {value:.3f}" if value <= 10 else f"  {name:<28} {value:,.1f}")
        print("  by area of the visible object (share of the image): IoU, named, regions")
        for bucket, rows in by_area(masks, captions).items():
            iou = np.mean([mask.box_iou for mask, _ in rows])
            named = np.mean([caption.named for _, caption in rows])
            print(f"    {bucket:<26} {iou:.3f}  {named:.3f}  {len(rows):,}")
        print("  concepts named least:", ", ".join(worst_concepts(captions)))
        print(f"  {time.monotonic() - begun:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def summarised(masks: list[MaskScore], captions: list[CaptionScore]) -> dict[str, float]:
    """Means over all objects, and the captions' scores against every phrase of the scene."""
    figures = {
        "regions": float(len(masks)),
        "concepts": float(len({row.concept for row in captions})),
        **{
            name: mean_of(masks, name)
            for name in ("box_iou", "box_iou_best", "box_iou_single", "box_iou_predicted",
                         "point_iou", "point_iou_predicted")
        },
        "named": mean_of(captions, "named"),
        "log_probability": mean_of(captions, "log_probability"),
    }  # fmt: skip
    rows = [
        RegionCaption("scenes", i, row.caption, row.references) for i, row in enumerate(captions)
    ]
    return figures | score_captions(rows) | meteor(captions)


def meteor(captions: list[CaptionScore]) -> dict[str, float]:
    """METEOR by the Java program inside pycocoevalcap; nothing where there is no Java."""
    if shutil.which("java") is None:
        print("no METEOR: its only scorer is a Java program, and there is no java")
        return {}
    from pycocoevalcap.meteor.meteor import Meteor

    said = {i: [tokenised(row.caption)] for i, row in enumerate(captions)}
    truth = {i: [tokenised(text) for text in row.references] for i, row in enumerate(captions)}
    score, _ = Meteor().compute_score(truth, said)
    return {"meteor": float(score)}


def held_out_scenes(art: Art, styles: tuple[str, ...], num_scenes: int) -> list[Scene]:
    """The first held-out seeds, each scene in one of the styles in turn."""
    return [
        compose_scene(HELD_OUT_FIRST_SEED + i, art, split="held-out", style=style)
        for i, style in enumerate(islice(cycle(styles), num_scenes))
    ]


def automatic_recall(
    model: ScaModel, scenes: list[Scene], settings: AutomaticMaskSettings
) -> dict[str, float]:
    """Share of objects that some automatic mask covers, and how many masks hit none."""
    best: list[float] = []
    num_masks = num_astray = 0
    for scene in scenes:
        found = [
            rle_to_mask(proposal.region.mask_rle)
            for proposal in propose_regions(model, scene.image, None, settings)
            if proposal.region.mask_rle is not None
        ]
        iou = pairwise_iou(np.array(found, bool).reshape(-1, *scene.masks.shape[1:]), scene.masks)
        wanted = scene.masks.mean(axis=(1, 2)) > LEAST_VISIBLE
        best += (iou.max(axis=0) if len(iou) else np.zeros(len(wanted)))[wanted].tolist()
        num_masks += len(found)
        num_astray += int((iou.max(axis=1) < 0.5).sum()) if len(iou) else 0
    return {
        "automatic_recall_50": float(np.mean(np.array(best) >= 0.5)),
        "automatic_recall_75": float(np.mean(np.array(best) >= 0.75)),
        "automatic_masks_per_image": num_masks / len(scenes),
        "automatic_masks_astray": num_astray / max(num_masks, 1),
    }


def pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every pair of masks, (N, H, W) and (M, H, W) -> (N, M)."""
    num_pixels = first.shape[1] * first.shape[2]
    a = first.reshape(len(first), num_pixels).astype(np.float32)
    b = second.reshape(len(second), num_pixels).astype(np.float32)
    inter = a @ b.T
    iou: np.ndarray = inter / np.maximum(a.sum(axis=1)[:, None] + b.sum(axis=1) - inter, 1)
    return iou


def by_area(
    masks: list[MaskScore], captions: list[CaptionScore]
) -> dict[str, list[tuple[MaskScore, CaptionScore]]]:
    """Scores in groups of visible area."""
    groups: dict[str, list[tuple[MaskScore, CaptionScore]]] = {
        name: [] for name in ("below 1 %", "1 to 3 %", "3 to 10 %", "above 10 %")
    }
    for row in zip(masks, captions, strict=True):
        above = sum(row[0].area_share >= limit for limit in (0.01, 0.03, 0.1))
        groups[list(groups)[above]].append(row)
    return {name: rows for name, rows in groups.items() if rows}


def worst_concepts(scores: list[CaptionScore], num: int = 8) -> list[str]:
    """The concepts that captions name least often, with the share."""
    named: dict[str, list[bool]] = defaultdict(list)
    for row in scores:
        named[row.concept].append(row.named)
    ranked = sorted(named, key=lambda concept: float(np.mean(named[concept])))
    return [f"{concept} {np.mean(named[concept]):.2f}" for concept in ranked[:num]]


if __name__ == "__main__":
    main()
