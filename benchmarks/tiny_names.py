"""Names that a frozen SAM's image embedding knows: a linear probe, for the bundled model's card.

    python benchmarks/tiny_names.py --sam runs/names/sam/model --sam runs/masks/model

Each SAM stays as it is. Its embedding is averaged inside the visible mask of every object of some
training scenes, a linear classifier of all concepts is fitted to these averages, and the share of
right names is counted on new compositions. `python -m sca_tiny train tiny-sam
--set label_weight=0 --set naming_steps=0` makes a SAM that was never told a name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.images.pixels import preprocess
from sca_batch.model.parts import load_sam
from sca_batch.model.sca import PromptableSam
from sca_tiny.sam.batches import coverage
from sca_tiny.sam.losses import pooled_embedding
from sca_tiny.scenes.art import TRAIN_STYLES, Art, load_art
from sca_tiny.scenes.compose import HELD_OUT_FIRST_SEED, Scene, compose_scene

TRAIN_SEED = 700_000_000  # no stage's
EPOCHS = 40
BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sam", type=Path, action="append", required=True, help="a SAM's folder")
    parser.add_argument("--scenes", type=int, default=1_500, help="dense ones to fit to")
    parser.add_argument("--held-out", type=int, default=300, help="natural ones to judge by")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    art = load_art(styles=TRAIN_STYLES)
    figures = {}
    for folder in arguments.sam:
        sam = load_sam(folder)
        share = probe(sam, art, arguments.scenes, arguments.held_out)
        figures[str(folder)] = share
        print(f"{folder}: {share:.3f} of the objects of held-out compositions named", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def probe(sam: PromptableSam, art: Art, num_scenes: int, num_held_out: int) -> float:
    """The share of held-out objects whose concept a linear classifier of the embedding gets right.

    Half of the scenes that it is fitted to are dense, half are like the ones it is judged by.
    """
    seen = (
        compose_scene(TRAIN_SEED + i, art, layout="dense" if i % 2 else "natural")
        for i in range(num_scenes)
    )
    new = (
        compose_scene(
            HELD_OUT_FIRST_SEED + i,
            art,
            split="held-out",
            style=TRAIN_STYLES[i % len(TRAIN_STYLES)],
        )
        for i in range(num_held_out)
    )
    features, labels = pooled(sam, art, seen)
    mean, std = features.mean(dim=0), features.std(dim=0) + 1e-6
    classifier = fitted((features - mean) / std, labels, len(art.concepts))
    features, labels = pooled(sam, art, new)
    with torch.no_grad():
        guessed = classifier((features - mean) / std).argmax(dim=-1)
    return float((guessed == labels).float().mean())


@torch.no_grad()
def pooled(sam: PromptableSam, art: Art, scenes: Iterable[Scene]) -> tuple[Tensor, Tensor]:
    """The embedding's mean inside every visible mask (N, D), and the concepts' numbers (N,)."""
    numbers = {concept.label: i for i, concept in enumerate(art.concepts)}
    size = sam.config.image_size
    features, labels = [], []
    for scene in scenes:
        pixels = torch.from_numpy(preprocess(scene.image, size))[None]
        cover = torch.from_numpy(coverage(scene.masks, 4 * sam.config.grid_size)).float() / 255
        image_N = torch.zeros(len(cover), dtype=torch.long)
        features.append(
            pooled_embedding(sam.encode_image(pixels)[:, : sam.config.width], cover, image_N)
        )
        labels += [numbers[name] for name in scene.concepts]
    return torch.cat(features), torch.tensor(labels)


def fitted(features: Tensor, labels: Tensor, num_concepts: int) -> nn.Linear:
    """A linear classifier, by AdamW with a cosine to zero."""
    torch.manual_seed(0)
    classifier = nn.Linear(features.shape[1], num_concepts)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=1e-3)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(labels))).split(BATCH):
            loss = nn.functional.cross_entropy(
                classifier(features[rows]), labels[rows], label_smoothing=0.1
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier


if __name__ == "__main__":
    main()
