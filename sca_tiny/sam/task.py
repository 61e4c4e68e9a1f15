"""Stage one of the bundled model as a task: a small SAM on composed scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sca_batch.errors import ScaError
from sca_batch.model.parts import load_sam, save_sam
from sca_batch.model.sca import PromptableSam
from sca_batch.train.optimization import ParameterGroup, parameter_groups
from sca_batch.train.processes import load_batches
from sca_batch.train.task import (
    Batch,
    Losses,
    Report,
    RunSettings,
    Task,
    Validation,
    recipe_fingerprint,
)
from sca_tiny.recipes import SamRecipe
from sca_tiny.sam.batches import SamBatch, SamBatches, sam_batch
from sca_tiny.sam.calibration import calibrate
from sca_tiny.sam.initial import initialise_sam
from sca_tiny.sam.losses import build_classifiers, sam_losses
from sca_tiny.scenes.art import TRAIN_STYLES, Art
from sca_tiny.scenes.compose import HELD_OUT_FIRST_SEED, Scene, compose_scene
from sca_tiny.scoring import mean_of, score_masks

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SamStep", "SamTask", "sam_settings", "validation_scenes"]

# Far from the first held-out seeds, which benchmarks use.
VALIDATION_FIRST_SEED = HELD_OUT_FIRST_SEED + 10_000_000


def sam_settings(recipe: SamRecipe) -> RunSettings:
    """The recipe's numbers that are the loop's."""
    return RunSettings(
        recipe,
        lr=recipe.lr,
        images_per_step=recipe.images_per_step,
        images_per_device=recipe.images_per_device,
        ranked_by="box_iou",
        fused_optimizer=True,
    )


class SamStep(nn.Module):
    """One forward pass to the losses, as one module: what is wrapped for many devices."""

    def __init__(self, sam: PromptableSam, classifiers: nn.ModuleDict, recipe: SamRecipe) -> None:
        super().__init__()
        self.sam, self.classifiers, self.recipe = sam, classifiers, recipe

    def forward(self, batch: SamBatch) -> Losses:
        return sam_losses(self.sam, self.classifiers, batch, self.recipe)


class SamTask(Task):
    """A SAM that starts from ImageNet's backbone and learns on scenes. See `task.Task`.

    Classifiers of names learn with it and are left behind. `export` sets SAM's quality scores
    right first (`calibration.calibrate`).
    """

    can_validate = True

    def __init__(self, recipe: SamRecipe, art: Art, *, report: Report) -> None:
        self.recipe, self.art, self.report = recipe, art, report
        self.name = recipe.name
        config = recipe.sizes.config()
        self.sam = PromptableSam(config)
        start = Path(recipe.start) if recipe.start else None
        if start and start.suffix != ".pt":
            self.sam.load_state_dict(load_sam(start).state_dict())
        else:
            initialise_sam(self.sam, recipe.seed)
        freeze_stages(self.sam, recipe.frozen_stages, depthwise=recipe.frozen_depthwise)
        self.sam.vision_encoder.to(memory_format=torch.channels_last)
        self.classifiers = build_classifiers(config, len(art.concepts), recipe.seed)
        self.module = SamStep(self.sam.train(), self.classifiers, recipe)
        if start and start.suffix == ".pt":
            _load_trained(self.groups(), start)
        if recipe.edges_alone:
            freeze_but_edges(self.sam)
        self._validation: tuple[list[Scene], SamBatch] | None = None

    def groups(self) -> list[ParameterGroup]:
        factors = [("timm_vision_encoder.", self.recipe.backbone_lr_factor)]
        groups = parameter_groups(self.sam, lr_factors=factors)
        named = {f"classifiers.{n}": p for n, p in self.classifiers.named_parameters()}
        return [*groups, ParameterGroup(named, decays=True)]

    def batches(self, numbers: range) -> Iterator[Batch]:
        return load_batches(SamBatches(self.recipe, self.art), numbers, workers=self.recipe.workers)

    def fingerprint(self) -> dict[str, object]:
        kept = recipe_fingerprint(self.recipe, ["validation_scenes"])
        return kept | {"concepts": len(self.art.concepts), "styles": list(self.art.styles)}

    def validate(
        self, accelerator: Accelerator, should_stop: Callable[[], bool]
    ) -> Validation | None:
        """Masks and names on new compositions; every process does all of it."""
        if self._validation is None:
            size_px = self.recipe.sizes.image_size
            scenes = validation_scenes(self.art, self.recipe.validation_scenes, size_px)
            rng = np.random.default_rng(self.recipe.seed)
            recipe = replace(self.recipe, restyled_share=0.0)
            self._validation = scenes, sam_batch(scenes, recipe, self.art, rng)
        scenes, batch = self._validation
        self.sam.eval()
        scores = []
        with accelerator.autocast():
            for scene in scenes:
                if should_stop():
                    self.sam.train()
                    return None
                scores += score_masks(self.sam, scene)
            with torch.no_grad():
                losses = sam_losses(
                    self.sam, self.classifiers, batch.to(accelerator.device), self.recipe
                )
        self.sam.train()
        return Validation(
            {
                "loss": float(losses.total),
                **{name: float(value) for name, value in losses.parts.items()},
                **{
                    name: mean_of(scores, name)
                    for name in ("box_iou", "box_iou_best", "box_iou_single", "point_iou")
                },
            }
        )

    def export(self, folder: Path) -> None:
        sam = self.sam.eval()
        calibration = calibrate(sam, calibration_scenes(self.recipe, self.art))
        self.report(
            "Calibrated the IoU head: squared error "
            f"{calibration.iou_error_before:.4f} -> {calibration.iou_error_after:.4f}, "
            f"logits x {calibration.logit_factor:g}"
        )
        save_sam(sam, folder)


def _load_trained(groups: list[ParameterGroup], checkpoint: Path) -> None:
    """Takes what a checkpoint of an earlier run has of the parameters.

    What is new, or of another size, stays as it was drawn.
    """
    try:
        trained = torch.load(checkpoint, map_location="cpu", weights_only=True)["trained"]
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        raise ScaError(f"{checkpoint}: expected a checkpoint of tiny-sam: {error}") from error
    with torch.no_grad():
        for group in groups:
            for name, parameter in group.parameters.items():
                if name in trained and trained[name].shape == parameter.shape:
                    parameter.copy_(trained[name])


def freeze_stages(sam: PromptableSam, num_stages: int, *, depthwise: bool) -> None:
    """Freezes the stem with the first stages, and all depthwise convolutions of the backbone.

    The stem is trained where no stage is frozen. The gradient of a depthwise kernel, or of its
    bias, takes a CPU twenty times as long as that of its input.
    """
    for name, module in sam.vision_encoder.backbone.named_modules():
        stage = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        is_depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        if (num_stages and stage < num_stages) or (depthwise and is_depthwise):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def freeze_but_edges(sam: PromptableSam) -> None:
    """Freezes all that comes before masks are upscaled; high-res features go on."""
    edges = (
        "vision_encoder.high_res.",
        "mask_decoder.upscale_",
        "mask_decoder.output_hypernetworks_mlps.",
    )
    for name, parameter in sam.named_parameters():
        if not name.startswith(edges):
            parameter.requires_grad_(False)


def validation_scenes(art: Art, num: int, size_px: int, *, first: int = 0) -> list[Scene]:
    """New compositions of drawings in the training styles, one style a scene."""
    styles = islice(cycle(style for style in TRAIN_STYLES if style in art.styles), num)
    return [
        compose_scene(
            VALIDATION_FIRST_SEED + first + i, art, split="held-out", style=style, size_px=size_px
        )
        for i, style in enumerate(styles)
    ]


def calibration_scenes(recipe: SamRecipe, art: Art) -> Iterator[Scene]:
    """Training scenes from the far end of the seeds, which no run reaches."""
    for i in range(recipe.calibration_scenes):
        yield compose_scene(HELD_OUT_FIRST_SEED - 1 - i, art, size_px=recipe.sizes.image_size)
