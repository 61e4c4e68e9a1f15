"""The language model learns to read SAM's embedding, as a task: what an object's average says.

Between a text-only language model and the mixer's training. It is told of objects by SAM's image
embedding, averaged inside the visible mask and put where the caption queries will stand.
"""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  R objects   D width of the image embedding   L caption ids   Q caption queries

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.config import ScaConfig
from sca_batch.model.sca import PromptableSam, ScaModel
from sca_batch.model.tokenizer import CaptionTokenizer
from sca_batch.storage.atomic import writing
from sca_batch.train.batches import TokenizerFolder
from sca_batch.train.captioning import prefix_caption_loss
from sca_batch.train.initial import copy_tokenizer
from sca_batch.train.optimization import ParameterGroup
from sca_batch.train.processes import load_batches
from sca_batch.train.samples import pad_ids
from sca_batch.train.task import (
    Batch,
    Losses,
    Report,
    RunSettings,
    Task,
    Validation,
    recipe_fingerprint,
)
from sca_tiny.language.task import matrices_decay
from sca_tiny.recipes import ReadingRecipe
from sca_tiny.sam.batches import coverage
from sca_tiny.sam.losses import as_pixels, pooled_embedding
from sca_tiny.scenes.art import Art
from sca_tiny.scenes.compose import compose_scene
from sca_tiny.scoring import names_concept

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Objects", "ReadingTask", "read_objects", "reading_settings", "write_objects"]

FIRST_SEED = 600_000_000  # no other stage's
SCENES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Objects:
    """Many objects: their averaged embeddings (R, D) float16, names, and phrases of each."""

    features_RD: Tensor
    labels: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ReadingBatch:
    """Some objects and one text for each; `attention_RL` is 0 on right padding."""

    features_RD: Tensor
    ids_RL: Tensor
    attention_RL: Tensor
    tasks: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The objects' names in messages."""
        return tuple(f"object {number}" for number in self.numbers)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers that a step's log adds up."""
        return {"regions": len(self.numbers)}

    def to(self, device: torch.device) -> ReadingBatch:
        """The same on a device."""
        return replace(
            self,
            features_RD=self.features_RD.to(device),
            ids_RL=self.ids_RL.to(device),
            attention_RL=self.attention_RL.to(device),
        )


@torch.no_grad()
def write_objects(
    sam: PromptableSam, art: Art, recipe: ReadingRecipe, path: Path, *, report: Report
) -> None:
    """Encodes `recipe.scenes` scenes and writes every object's average and what is said of it."""
    features: list[Tensor] = []
    labels: list[str] = []
    phrases: list[tuple[str, ...]] = []
    for number, made in enumerate(_scenes_of(recipe, art, sam.config)):
        embedding = sam.encode_image(as_pixels(made.images_BSS3.to(sam.device)))
        cover_NYX = made.cover_NYX.to(sam.device).float() / 255
        image_N = made.image_N.to(sam.device)
        pooled_ND = pooled_embedding(embedding[:, : sam.config.width], cover_NYX, image_N)
        features.append(pooled_ND.half().cpu())
        labels += made.labels
        phrases += made.phrases
        if number % 50 == 49:
            report(f"Encoded {(number + 1) * SCENES_AT_ONCE:,} of {recipe.scenes:,} scenes")
    texts = json.dumps({"labels": labels, "phrases": phrases}, ensure_ascii=False)
    with writing(path) as file:
        torch.save({"features": torch.cat(features), "texts": texts}, file)


class _Scenes(NamedTuple):
    """Scenes on their way from the process that composed them."""

    images_BSS3: Tensor
    cover_NYX: Tensor
    image_N: Tensor
    labels: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]


class _SceneGroups(Dataset[_Scenes]):
    """Every `SCENES_AT_ONCE` scenes, made from their number alone."""

    def __init__(self, recipe: ReadingRecipe, art: Art, config: ScaConfig) -> None:
        self.recipe, self.art, self.config = recipe, art, config

    def __getitem__(self, number: int) -> _Scenes:
        scenes = [
            compose_scene(
                FIRST_SEED + number * SCENES_AT_ONCE + i,
                self.art,
                size_px=self.config.image_size,
                layout="dense" if i < self.recipe.dense_of_eight else "natural",
            )
            for i in range(SCENES_AT_ONCE)
        ]
        cells = 4 * self.config.grid_size
        return _Scenes(
            torch.from_numpy(np.stack([scene.image for scene in scenes])),
            torch.from_numpy(np.concatenate([coverage(scene.masks, cells) for scene in scenes])),
            torch.tensor([b for b, scene in enumerate(scenes) for _ in scene.masks]),
            tuple(name for scene in scenes for name in scene.concepts),
            tuple(captions for scene in scenes for captions in scene.captions),
        )


def _scenes_of(recipe: ReadingRecipe, art: Art, config: ScaConfig) -> Iterator[_Scenes]:
    """All of the recipe's scenes, and those that make the last group whole."""
    groups = range(-(-recipe.scenes // SCENES_AT_ONCE))
    return load_batches(_SceneGroups(recipe, art, config), groups, workers=recipe.workers)


def read_objects(path: Path) -> Objects:
    """The objects of `write_objects`."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    texts = json.loads(stored["texts"])
    phrases = tuple(tuple(captions) for captions in texts["phrases"])
    return Objects(stored["features"], tuple(texts["labels"]), phrases)


def reading_settings(recipe: ReadingRecipe) -> RunSettings:
    """The recipe's numbers that are the loop's; objects are its images."""
    return RunSettings(
        recipe,
        lr=recipe.lr,
        images_per_step=recipe.objects_per_step,
        images_per_device=recipe.objects_per_device,
        ranked_by="named",
        fused_optimizer=True,
    )


class ReadingStep(nn.Module):
    """Captions from averages that stand in for all queries."""

    def __init__(self, model: ScaModel, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: ReadingBatch) -> Losses:
        prefix = self.model.prefix(as_queries(self.model, batch.features_RD), batch.tasks)
        loss = prefix_caption_loss(
            self.model, prefix, batch.ids_RL, batch.attention_RL, self.label_smoothing
        )
        return Losses(loss, {})


def as_queries(model: ScaModel, features_RD: Tensor) -> Tensor:
    """The same vector for every query, (R, 1, Q, D)."""
    num_queries = model.config.num_caption_tokens
    return features_RD.float()[:, None, None].expand(-1, 1, num_queries, -1)


class ReadingTask(Task):
    """Trains the language model, the projection and the task tokens. See `task.Task`.

    `model` has the SAM that the objects were encoded with; the last objects are held out.
    """

    can_validate = True

    def __init__(
        self, recipe: ReadingRecipe, model: ScaModel, objects: Objects, art: Art, tokenizer: Path
    ) -> None:
        self.recipe, self.model, self.art, self.tokenizer = recipe, model, art, tokenizer
        self.name = recipe.name
        self.objects = objects
        self.num_trained = len(objects.labels) - recipe.validation_objects
        model.requires_grad_(False)
        for part in (model.language_model, model.projection, model.task_tokens):
            part.requires_grad_(True)
        self.module = ReadingStep(model.train(), recipe.label_smoothing)

    def groups(self) -> list[ParameterGroup]:
        return matrices_decay(self.model)

    def batches(self, numbers: range) -> Iterator[Batch]:
        words = TokenizerFolder(self.tokenizer, self.model.config.eos_token_id)
        data = _ReadingBatches(self.recipe, self.objects, self.num_trained, words)
        return load_batches(data, numbers, workers=self.recipe.workers)

    def fingerprint(self) -> dict[str, object]:
        return recipe_fingerprint(self.recipe) | {"objects": len(self.objects.labels)}

    def validate(self, accelerator: Accelerator, should_stop: Callable[[], bool]) -> Validation:
        """The share of held-out objects that are named; every process does all of it."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "a model that is validated has a tokenizer"
        chosen = range(self.num_trained, len(self.objects.labels))
        self.model.eval()
        features = self.objects.features_RD[chosen.start :].to(accelerator.device)
        batch = _batch(self.objects, list(chosen), self.recipe, tokenizer, None)
        with torch.no_grad(), accelerator.autocast():
            loss = float(self.module(batch.to(accelerator.device)).total)
            found = self.model.generate(as_queries(self.model, features), num_beams=1)
        named = [
            names_concept(
                tokenizer.decode(heads[0][0].ids),
                self.art.concept_by_label[self.objects.labels[k]],
            )
            for k, heads in zip(chosen, found, strict=True)
        ]
        self.model.train()
        return Validation({"loss": loss, "named": float(np.mean(named))})

    def export(self, folder: Path) -> None:
        save_checkpoint(self.model.eval(), folder)
        copy_tokenizer(self.tokenizer, folder)


class _ReadingBatches(Dataset[ReadingBatch]):
    """Every batch of a run, made from its number alone."""

    def __init__(
        self, recipe: ReadingRecipe, objects: Objects, num_trained: int, words: TokenizerFolder
    ) -> None:
        self.recipe, self.objects, self.num_trained = recipe, objects, num_trained
        self.words = words

    def __getitem__(self, number: int) -> ReadingBatch:
        rng = np.random.default_rng([self.recipe.seed, number])
        chosen = rng.integers(self.num_trained, size=self.recipe.objects_per_device).tolist()
        return _batch(self.objects, chosen, self.recipe, self.words.tokenizer, rng)


def _batch(
    objects: Objects,
    chosen: Sequence[int],
    recipe: ReadingRecipe,
    tokenizer: CaptionTokenizer,
    rng: np.random.Generator | None,
) -> ReadingBatch:
    """Draws a text for each object; without a generator the plainest."""
    tasks, rows = [], []
    for k in chosen:
        phrases, task = objects.phrases[k], "caption"
        text = phrases[0]
        if rng is not None and rng.random() >= recipe.simple_phrases:
            text = phrases[rng.integers(len(phrases))]
        if rng is not None and rng.random() < recipe.recognition_share:
            text, task = objects.labels[k], "recognition"
        tasks.append(task)
        rows.append(tokenizer.encode(text))
    ids_RL, attention_RL = pad_ids(rows, tokenizer.eos_token_id)
    features_RD = objects.features_RD[list(chosen)]
    return ReadingBatch(features_RD, ids_RL, attention_RL, tuple(tasks), tuple(chosen))
