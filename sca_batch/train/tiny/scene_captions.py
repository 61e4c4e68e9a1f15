"""SCA on composed scenes: the paper's task with scenes for data, and scores that scenes allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

from sca_batch.boxes import to_model_frame
from sca_batch.images import preprocess
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer
from sca_batch.train.caption_recipes import RUN_FIELDS
from sca_batch.train.caption_task import CaptionTask
from sca_batch.train.processes import leave_signals_to_main
from sca_batch.train.region_samples import CaptionBatch, RegionSample, collate
from sca_batch.train.scenes.art import Art
from sca_batch.train.scenes.compose import Scene, compose_scene
from sca_batch.train.start import copy_tokenizer
from sca_batch.train.task import BatchFailure, Validation
from sca_batch.train.tiny.domain import measure_domain
from sca_batch.train.tiny.recipes import SceneCaptionRecipe
from sca_batch.train.tiny.sam_batches import jittered
from sca_batch.train.tiny.sam_task import validation_scenes
from sca_batch.train.tiny.scoring import CaptionScore, mean_of, score_captions_of
from sca_batch.train.validation import COLOURS, RegionCaption, score_captions

__all__ = ["SceneCaptionTask", "caption_sample"]

FIRST_SEED = 500_000_000  # no scene that SAM was trained on


class SceneCaptionTask(CaptionTask):
    """Captions of the objects of composed scenes. See `task.Task`."""

    def __init__(
        self, recipe: SceneCaptionRecipe, model: ScaModel, art: Art, *, tokenizer: Path
    ) -> None:
        super().__init__(recipe, model, [], tokenizer=tokenizer)
        self.scene_recipe, self.art = recipe, art
        self.can_validate = True
        model.vision_encoder.to(memory_format=torch.channels_last)
        self._scenes: list[Scene] | None = None

    def batches(self, numbers: range) -> Iterator[CaptionBatch | BatchFailure]:
        workers = self.recipe.workers
        config = self.model.config
        return iter(
            DataLoader(
                _SceneBatches(
                    self.scene_recipe,
                    self.art,
                    size=config.image_size,
                    tokenizer=self.tokenizer,
                    eos_token_id=config.eos_token_id,
                ),
                batch_size=None,
                sampler=numbers,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=leave_signals_to_main,
            )
        )

    def fingerprint(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self.recipe).items() if k not in RUN_FIELDS}
        return kept | {"concepts": len(self.art.concepts), "styles": list(self.art.styles)}

    def validate(self, accelerator: Any, should_stop: Callable[[], bool]) -> Validation | None:
        """Captions of new compositions; every process does all of them."""
        recipe = self.scene_recipe
        if self._scenes is None:
            self._scenes = validation_scenes(
                self.art, recipe.validation_images, self.model.config.image_size
            )
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "a model that is validated has a tokenizer"
        size = self.model.config.image_size
        self.model.eval()
        scores: list[CaptionScore] = []
        by_scene: list[list[CaptionScore]] = []
        loss_sum = num_regions = 0.0
        with accelerator.autocast():
            for scene in self._scenes:
                if should_stop():
                    self.model.train()
                    return None
                by_scene.append(
                    score_captions_of(
                        self.model, scene, self.art, num_beams=recipe.validation_beams
                    )
                )
                scores += by_scene[-1]
                sample = caption_sample(scene, size, range(len(scene.masks)))
                batch = collate([sample], tokenizer).to(accelerator.device)
                with torch.no_grad():
                    loss = float(self.module(batch).total)
                loss_sum += loss * len(sample.phrases)
                num_regions += len(sample.phrases)
        self.model.train()
        rows = [
            RegionCaption("scenes", i, row.caption, row.references) for i, row in enumerate(scores)
        ]
        return Validation(
            {
                "loss": loss_sum / num_regions,
                "named": mean_of(scores, "named"),
                **score_captions(rows),
                "log_probability": mean_of(scores, "log_probability"),
                "regions": float(len(scores)),
            },
            [
                _painted(scene, rows_of)
                for scene, rows_of in zip(self._scenes, by_scene, strict=True)
            ][: recipe.sample_pictures],
        )

    def export(self, folder: Path) -> None:
        # Beyond the scenes of the validations, which have picked nothing here but may one day.
        scenes = validation_scenes(
            self.art,
            self.scene_recipe.domain_scenes,
            self.model.config.image_size,
            first=self.scene_recipe.validation_images,
        )
        domain = measure_domain(self.model.eval(), scenes)
        self.model.config = replace(self.model.config, domain=domain)
        # Half precision is a matter of size: 2e-4 in a logit of a mask.
        save_checkpoint(self.model, folder, dtype=torch.float16)
        copy_tokenizer(self.tokenizer, folder)


class _SceneBatches(Dataset[CaptionBatch]):
    """Every batch of a run, made from its number alone."""

    def __init__(
        self,
        recipe: SceneCaptionRecipe,
        art: Art,
        *,
        size: int,
        tokenizer: Path,
        eos_token_id: int,
    ) -> None:
        self.recipe, self.art, self.size = recipe, art, size
        self.tokenizer, self.eos_token_id = tokenizer, eos_token_id
        self._read: CaptionTokenizer | None = None

    def __getitem__(self, number: int) -> CaptionBatch:
        if self._read is None:  # here, because its functions do not travel to a process
            self._read = read_tokenizer(self.tokenizer, eos_token_id=self.eos_token_id)
        first = number * self.recipe.images_per_device
        return collate([self._sample(first + i) for i in range(self.recipe.images_per_device)],
                       self._read)  # fmt: skip

    def _sample(self, slot: int) -> RegionSample:
        recipe = self.recipe
        scene = compose_scene(FIRST_SEED + slot, self.art, size_px=self.size)
        rng = np.random.default_rng([recipe.seed, slot])
        # As many regions for every scene: those with few objects have some of them again.
        order = rng.permutation(len(scene.masks))
        chosen = [int(order[i % len(order)]) for i in range(recipe.regions_per_image)]
        return caption_sample(scene, self.size, chosen, recipe=recipe, rng=rng)


def caption_sample(
    scene: Scene,
    size: int,
    chosen: Any,
    *,
    recipe: SceneCaptionRecipe | None = None,
    rng: np.random.Generator | None = None,
) -> RegionSample:
    """Some objects of a scene as regions of an image.

    With a recipe and a generator boxes are jittered and phrases drawn, otherwise boxes are exact
    and phrases the plainest.
    """
    boxes, phrases, task = [], [], "caption"
    if recipe is not None and rng is not None and rng.random() < recipe.recognition_share:
        task = "recognition"
    for k in chosen:
        captions, box = scene.captions[k], scene.boxes_xyxy[k]
        phrase = captions[0]
        if recipe is not None and rng is not None:
            box = jittered(
                box,
                scene.image.shape[0],
                jitter=recipe.box_jitter,
                exact_share=recipe.exact_boxes,
                rng=rng,
            )
            if rng.random() >= recipe.simple_phrases:
                phrase = captions[rng.integers(len(captions))]
        boxes.append(box)
        phrases.append(scene.concepts[k] if task == "recognition" else phrase)
    size_hw = scene.image.shape[0], scene.image.shape[1]
    return RegionSample(
        key=f"scene {scene.seed}",
        task=task,
        boxes_N4=to_model_frame(np.stack(boxes).astype(np.float64), size_hw, size),
        region_N=np.asarray(chosen),
        phrases=tuple(phrases),
        size_hw=size_hw,
        pixels_3SS=preprocess(scene.image, size),
    )


def _painted(scene: Scene, scores: list[CaptionScore]) -> Image.Image:
    """The scene at twice its size, with boxes and what was said about them."""
    picture = Image.fromarray(scene.image).resize((2 * scene.image.shape[1],) * 2)
    draw = ImageDraw.Draw(picture)
    for k, row in enumerate(scores):
        x0, y0, x1, y1 = (2 * float(side) for side in scene.boxes_xyxy[k])
        colour = COLOURS[k % len(COLOURS)]
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
        draw.text((x0 + 3, y0 + 2), row.caption or "-", fill=colour)
    return picture
