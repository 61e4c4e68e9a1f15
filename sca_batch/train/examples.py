"""Composed scenes to tensors: what one training step looks at."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  B images   N visible objects of all images   R box prompts   P point prompts
#                 C captioned prompts, boxes first   L caption ids   S pixels of the square input
#                 H, W low-res masks

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sca_batch.data.atomic import writing
from sca_batch.images import preprocess
from sca_batch.model.config import TASKS
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer
from sca_batch.train.art import Art
from sca_batch.train.recipes import Recipe
from sca_batch.train.scenes import Scene, compose_scene, compose_scenes

__all__ = [
    "BACKGROUND",
    "END_TOKEN",
    "PADDING",
    "SceneBatches",
    "StepBatch",
    "batch_from_scenes",
    "be_nice",
    "coverage",
    "train_tokenizer",
]

END_TOKEN = "<|endoftext|>"
Floats = npt.NDArray[np.float32]

BACKGROUND = -1
PADDING = -100


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's tensors; coordinates are pixels of the model's square frame.

    `cover_NHW` is the share of each low-res cell that an object covers, in [0, 1].
    `object_R` and `object_P` say which object a prompt means, -1 for the background.
    `captioned_P` lists the points that are captioned, after all boxes: the rows of `ids_CL`,
    which are caption ids with -100 at padding, and of `task_C`, indexes into `TASKS`.
    """

    pixels_B3SS: Tensor
    cover_NHW: Tensor
    image_N: Tensor
    label_N: Tensor
    boxes_R4: Tensor
    object_R: Tensor
    image_R: Tensor
    points_P2: Tensor
    object_P: Tensor
    image_P: Tensor
    captioned_P: Tensor
    ids_CL: Tensor
    task_C: Tensor


class SceneBatches(Dataset[StepBatch]):
    """The batch of every step, made from the step's number alone.

    There is no position to save: a run that continues at a step asks for that step's batch.
    """

    def __init__(self, recipe: Recipe, art: Art, tokenizer_folder: Path, eos_token_id: int) -> None:
        self.recipe, self.art = recipe, art
        self.tokenizer_folder, self.eos_token_id = tokenizer_folder, eos_token_id
        self._tokenizer: CaptionTokenizer | None = None

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> StepBatch:
        if self._tokenizer is None:  # here, because its functions do not travel to a process
            self._tokenizer = read_tokenizer(self.tokenizer_folder, eos_token_id=self.eos_token_id)
        first = step * self.recipe.images_per_step
        scenes = [
            compose_scene(first + i, self.art, split="train", size_px=self.recipe.sizes.image_size)
            for i in range(self.recipe.images_per_step)
        ]
        rng = np.random.default_rng([self.recipe.seed, step])
        return batch_from_scenes(scenes, self.recipe, self.art, self._tokenizer, rng)


def batch_from_scenes(
    scenes: list[Scene],
    recipe: Recipe,
    art: Art,
    tokenizer: CaptionTokenizer,
    rng: np.random.Generator,
) -> StepBatch:
    """Draws prompts and phrases for some scenes and stacks everything."""
    size = recipe.sizes.image_size
    labels = {concept.label: i for i, concept in enumerate(art.concepts)}
    cells = size // recipe.sizes.patch_size * 4
    covers: list[Floats] = []
    image_of_object: list[int] = []
    label_of_object: list[int] = []
    boxes: list[Floats] = []
    object_of_box: list[int] = []
    image_of_box: list[int] = []
    points: list[Floats] = []
    object_of_point: list[int] = []
    image_of_point: list[int] = []
    captioned: list[int] = []
    ids_of_box: list[list[int]] = []
    ids_of_point: list[list[int]] = []
    task_of_box: list[int] = []
    task_of_point: list[int] = []
    for b, scene in enumerate(scenes):
        first = len(image_of_object)
        covers.append(coverage(scene.masks, cells))
        image_of_object += [b] * len(scene.masks)
        label_of_object += [labels[name] for name in scene.concepts]
        for k in _cycle(rng.permutation(len(scene.masks)), recipe.boxes_per_image):
            boxes.append(_jittered(scene.boxes_xyxy[k], size, recipe, rng))
            object_of_box.append(first + k)
            image_of_box.append(b)
            task, text = _phrase(scene, k, recipe, rng)
            task_of_box.append(task)
            ids_of_box.append(tokenizer.encode(text))
        for i, k in enumerate(_cycle(rng.permutation(len(scene.masks)), recipe.points_per_image)):
            if i < recipe.captioned_points_per_image:
                captioned.append(len(points))
                task, text = _phrase(scene, k, recipe, rng)
                task_of_point.append(task)
                ids_of_point.append(tokenizer.encode(text))
            points.append(_point_in(scene.masks[k], rng))
            object_of_point.append(first + k)
            image_of_point.append(b)
        background = np.logical_not(scene.masks.any(axis=0))
        for _ in range(recipe.background_points_per_image):
            points.append(_point_in(background, rng))
            object_of_point.append(BACKGROUND)
            image_of_point.append(b)
    ids = ids_of_box + ids_of_point
    ids_CL = np.full((len(ids), max(map(len, ids))), PADDING, np.int64)
    for row, caption in zip(ids_CL, ids, strict=True):
        row[: len(caption)] = caption
    return StepBatch(
        pixels_B3SS=torch.from_numpy(np.stack([preprocess(s.image, size) for s in scenes])),
        cover_NHW=torch.from_numpy(np.concatenate(covers)),
        image_N=torch.tensor(image_of_object),
        label_N=torch.tensor(label_of_object),
        boxes_R4=torch.from_numpy(np.stack(boxes)),
        object_R=torch.tensor(object_of_box),
        image_R=torch.tensor(image_of_box),
        points_P2=torch.from_numpy(np.stack(points)),
        object_P=torch.tensor(object_of_point),
        image_P=torch.tensor(image_of_point),
        captioned_P=torch.tensor(captioned, dtype=torch.long),
        ids_CL=torch.from_numpy(ids_CL),
        task_C=torch.tensor(task_of_box + task_of_point),
    )


def coverage(masks_NYX: npt.NDArray[np.bool_], cells: int) -> Floats:
    """The share of each cell that a mask covers, (N, cells, cells)."""
    num, height, width = masks_NYX.shape
    grouped = masks_NYX.reshape(num, cells, height // cells, cells, width // cells)
    shares: Floats = grouped.mean(axis=(2, 4), dtype=np.float32)
    return shares


def train_tokenizer(recipe: Recipe, art: Art, folder: Path) -> int:
    """Writes `tokenizer.json`, a byte-level BPE of the captions; returns its vocabulary's size.

    The end token has id 0.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=2,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(recipe, art), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "tokenizer.json") as file:
        file.write(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False).encode())
    return int(tokenizer.get_vocab_size())


def be_nice(worker: int) -> None:
    """Leaves the processor to the training process: a worker composes faster than it trains."""
    os.nice(10)


def _texts(recipe: Recipe, art: Art) -> Iterable[str]:
    size = recipe.sizes.image_size
    for scene in compose_scenes(
        art, split="train", num_scenes=recipe.tokenizer_scenes, size_px=size
    ):
        for captions in scene.captions:
            yield from captions
    for concept in art.concepts:  # the texts of task "recognition", and words of rare concepts
        yield concept.label


def _phrase(scene: Scene, k: int, recipe: Recipe, rng: np.random.Generator) -> tuple[int, str]:
    if rng.random() < recipe.recognition_share:
        return TASKS.index("recognition"), scene.concepts[k]
    captions = scene.captions[k]
    simple = rng.random() < recipe.simple_phrases
    return TASKS.index("caption"), captions[0 if simple else rng.integers(len(captions))]


def _jittered(box_xyxy: Floats, size: int, recipe: Recipe, rng: np.random.Generator) -> Floats:
    if rng.random() < recipe.exact_boxes:
        return box_xyxy
    sides = np.tile(box_xyxy[2:] - box_xyxy[:2], 2)
    # SAM's own jitter: a tenth of the side, at most 20 pixels of 1024.
    noise = np.clip(rng.normal(0, recipe.box_jitter, 4) * sides, -size / 50, size / 50)
    moved: Floats = np.clip(box_xyxy + noise, 0, size).astype(np.float32)
    return moved


def _point_in(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """The x and y of a random pixel of the mask; SAM adds half a pixel itself."""
    pixels = np.flatnonzero(mask)
    if not len(pixels):  # objects that leave no background: rare, and a corner will do
        return np.zeros(2, np.float32)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return np.array([x, y], np.float32)


def _cycle(order: npt.NDArray[np.int64], num: int) -> list[int]:
    return [int(order[i % len(order)]) for i in range(num)]
