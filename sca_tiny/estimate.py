"""The sizes and costs of the bundled model's stages, before anything is fetched or composed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import torch
from torch import nn

from sca_batch.model.checkpoint import build_empty
from sca_batch.model.sca import PromptableSam
from sca_tiny.language.task import gpt2_config
from sca_tiny.recipes import (
    TINY,
    LanguageRecipe,
    LanguageSizes,
    ReadingRecipe,
    SamRecipe,
    SamSizes,
    Stage,
    TinyRecipe,
)
from sca_tiny.sam.task import freeze_but_edges, freeze_stages

__all__ = ["preview_stages"]


def preview_stages(recipe: TinyRecipe | Stage) -> Iterator[str]:
    """Lines for each stage: its numbers, what is trained, and how much it looks at."""
    if not isinstance(recipe, TinyRecipe):
        yield from _preview(recipe, TINY.sam.sizes, TINY.language.sizes)
        return
    for number, stage in enumerate(recipe.stages, start=1):
        yield f"stage {number}: {stage.name}"
        for line in _preview(stage, recipe.sam.sizes, recipe.language.sizes):
            yield f"  {line}"


def _preview(stage: Stage, sam: SamSizes, language: LanguageSizes) -> Iterator[str]:
    for name, value in asdict(stage).items():
        yield f"{name}: {value}"
    if isinstance(stage, LanguageRecipe):
        with torch.device("meta"):
            from transformers import GPT2LMHeadModel

            model: nn.Module = GPT2LMHeadModel(gpt2_config(stage.sizes, stage.sizes.vocab_size))
        yield from _counted({"language_model": model.parameters()})
        documents = stage.steps * stage.documents_per_step
        yield (
            f"{stage.steps:,} steps of {stage.documents_per_step} documents: {documents:,}, out of "
            f"the captions of {stage.scenes:,} scenes"
        )
    elif isinstance(stage, SamRecipe):
        with torch.device("meta"):
            empty = PromptableSam(stage.sizes.config())
        freeze_stages(empty, stage.frozen_stages, depthwise=stage.frozen_depthwise)
        if stage.edges_alone:
            freeze_but_edges(empty)
        yield from _counted({name: part.parameters() for name, part in empty.named_children()})
        shares = stage.images_per_step // stage.images_per_device
        naming = stage.naming_steps * shares * stage.naming_images_per_device
        masks = (stage.steps - stage.naming_steps) * stage.images_per_step
        prompts = stage.boxes_per_image + stage.points_per_image + stage.background_points_per_image
        yield (
            f"{stage.steps:,} steps: {naming:,} dense scenes for names alone, then {masks:,} "
            f"scenes with {masks * prompts:,} prompts"
        )
    else:
        mixer = stage if isinstance(stage, ReadingRecipe) else TINY.reading
        config = replace(
            sam.config(),
            text=gpt2_config(language, language.vocab_size),
            mixer_layers=mixer.mixer_layers,
            num_caption_tokens=mixer.caption_tokens,
            num_task_tokens=mixer.task_tokens,
        )
        model = build_empty(config)
        if isinstance(stage, ReadingRecipe):
            names = ("language_model", "projection", "task_tokens")
            yield from _counted({name: getattr(model, name).parameters() for name in names})
            objects = stage.steps * stage.objects_per_step
            yield (
                f"{stage.steps:,} steps of {stage.objects_per_step} objects: {objects:,}, out of "
                f"{stage.scenes:,} scenes"
            )
            return
        modules = model.trainable_modules()
        yield from _counted({name: module.parameters() for name, module in modules.items()})
        images = stage.steps * stage.images_per_step
        yield (
            f"{stage.steps:,} steps of {stage.images_per_step} scenes: {images:,}, with "
            f"{images * stage.regions_per_image:,} captions"
        )


def _counted(parts: dict[str, Iterable[nn.Parameter]]) -> Iterator[str]:
    counts = {
        name: sum(p.numel() for p in parameters if p.requires_grad)
        for name, parameters in parts.items()
    }
    for name, count in counts.items():
        yield f"trained: {name} {count:,}"
    yield f"trainable parameters: {sum(counts.values()):,}"
