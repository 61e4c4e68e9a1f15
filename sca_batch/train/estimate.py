"""The size and cost of a run, before anything is read or downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from sca_batch.model.checkpoint import build_empty
from sca_batch.model.config import read_config
from sca_batch.train.initial import sizes_before_training
from sca_batch.train.optimization import parameter_groups, select_trainable
from sca_batch.train.recipes import CaptionRecipe

__all__ = ["preview"]


def preview(recipe: CaptionRecipe, num_images: Mapping[str, int] | None = None) -> Iterator[str]:
    """Lines: the resolved recipe, parameter groups with counts, steps, images, regions, epochs.

    `num_images` are those of the manifests that are there, by the data sets' names; the published
    numbers stand for the others.
    """
    for name, value in asdict(recipe).items():
        yield f"{name}: {value}"
    yield from _groups(recipe)
    yield from _cost(recipe, num_images or {})
    if recipe.warning:
        yield f"Warning: {recipe.warning}"


def _groups(recipe: CaptionRecipe) -> Iterator[str]:
    if recipe.start and (Path(recipe.start) / "config.json").is_file():
        config = read_config(Path(recipe.start))
    else:
        config = sizes_before_training(recipe)
    model = build_empty(config)
    trainable = select_trainable(model, recipe.also_trained)
    yield ""
    counts: dict[str, int] = {}
    for name, parameter in trainable.items():
        part = ".".join(name.split(".")[: 2 if name.startswith("mask_decoder.") else 1])
        counts[part] = counts.get(part, 0) + parameter.numel()
    for part, count in counts.items():
        yield f"trained: {part} {count:,}"
    for group in parameter_groups(model, lr_factors=recipe.lr_factors):
        decay = recipe.weight_decay if group.decays else 0.0
        lr = recipe.learning_rate * group.lr_factor
        yield (
            f"group: {len(group.parameters)} tensors, {group.count:,} parameters, lr {lr:g}, "
            f"weight decay {decay:g}"
        )
    yield f"trainable parameters: {sum(counts.values()):,}"


def _cost(recipe: CaptionRecipe, num_images: Mapping[str, int]) -> Iterator[str]:
    steps = recipe.last_step
    seen = steps * recipe.images_per_step
    counts = {part.name: num_images.get(part.name, part.images) for part in recipe.data}
    yield ""
    yield (
        f"{steps:,} steps of {recipe.images_per_step} images, peak lr {recipe.learning_rate:g}: "
        f"{seen:,} images, at most {seen * recipe.regions_per_image:,} regions"
    )
    # Parts of a mix are drawn in proportion to what the recipe says of them.
    whole = sum(part.images for part in recipe.data)
    for part in recipe.data:
        count = max(counts[part.name], 1)
        epochs = seen * part.images / whole / count
        yield f"{part.name}: {count:,} images, {epochs:,.1f} epochs"
    validations = steps // recipe.validate_every
    yield f"{validations} validations of at most {recipe.validation_images} images"
