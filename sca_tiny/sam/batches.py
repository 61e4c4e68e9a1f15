"""Composed scenes to tensors for training a SAM: prompts, what they mean, and what is there."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  B images   N visible objects of all images   R box prompts   P point prompts
#                 S pixels of the square input   Y, X low-res masks

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sca_batch.errors import ScaError
from sca_batch.images.pixels import UInt8Image
from sca_tiny.recipes import SamRecipe
from sca_tiny.scenes.art import Art
from sca_tiny.scenes.compose import Scene, compose_scene

__all__ = ["BACKGROUND", "SamBatch", "SamBatches", "coverage", "jittered", "mirrored", "sam_batch"]

Floats = npt.NDArray[np.float32]

BACKGROUND = -1


@dataclass(frozen=True, slots=True)
class SamBatch:
    """One step's tensors; coordinates are pixels of the model's square frame.

    `images_BSS3` are RGB, uint8: a quarter of what they are as a model's input, which matters on
    the way from the processes that compose them and to a device. `cover_NYX` is the share of each
    low-res cell that an object covers, in 255ths (uint8), image by image; `label_N` is the object's
    index among the art's concepts. The first images have prompts, as many each, image by image;
    `object_BP` says which object each means, an image's boxes first, -1 for the background.
    """

    images_BSS3: Tensor
    cover_NYX: Tensor
    image_N: Tensor
    label_N: Tensor
    boxes_R4: Tensor
    points_P2: Tensor
    object_BP: Tensor
    seeds: tuple[int, ...]  # of the scenes

    @property
    def keys(self) -> tuple[str, ...]:
        """The images' names in messages."""
        return tuple(f"scene {seed}" for seed in self.seeds)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers that a step's log adds up."""
        return {
            "images": len(self.seeds),
            "objects": len(self.label_N),
            "regions": len(self.boxes_R4) + len(self.points_P2),
        }

    def to(self, device: torch.device) -> SamBatch:
        """The same on a device."""
        moved = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "seeds"
        }
        return SamBatch(**moved, seeds=self.seeds)


_BY_VIEWS = (
    "images_per_device",
    "dense_images_per_device",
    "named_images_per_device",
    "naming_images_per_device",
)


class SamBatches(Dataset[SamBatch]):
    """Every batch of a run, made from its number alone: batch `m` of step `m // batches_per_step`.

    There is no position to save: a run that continues at a step asks for that step's batches.

    Raises:
        ScaError: a number of images cannot be divided by `views`.
    """

    def __init__(self, recipe: SamRecipe, art: Art) -> None:
        self.recipe, self.art = recipe, art
        for name in _BY_VIEWS:
            if getattr(recipe, name) % recipe.views:
                raise ScaError(
                    f"{name}={getattr(recipe, name)} cannot be divided by views={recipe.views}: a "
                    f"batch has every scene that often. --set {name}=..."
                )
        batches_per_step = recipe.images_per_step // recipe.images_per_device
        self.num_naming = recipe.naming_steps * batches_per_step

    def __getitem__(self, number: int) -> SamBatch:
        recipe = self.recipe
        naming = number < self.num_naming
        prompted = 0 if naming else recipe.images_per_device
        num = (
            recipe.naming_images_per_device if naming else prompted + recipe.named_images_per_device
        )
        num_dense = num if naming else recipe.dense_images_per_device
        # Every scene is seen `views` times in its batch, and the dense ones come first.
        num, num_dense, views = num // recipe.views, num_dense // recipe.views, recipe.views
        # Batches of both kinds count scenes in one row, and no scene is seen twice.
        most = recipe.images_per_device + max(
            recipe.naming_images_per_device, recipe.named_images_per_device
        )
        seen = recipe.skipped_batches + number
        scenes = [
            compose_scene(
                seen * most + i,
                self.art,
                size_px=recipe.sizes.image_size,
                layout="dense" if i < num_dense else "natural",
            )
            for i in range(num)
        ]
        rng = np.random.default_rng([recipe.seed, seen])
        seen_again = [mirrored(scene) if i % 2 else scene for scene in scenes for i in range(views)]
        return sam_batch(seen_again, recipe, self.art, rng, prompted=prompted)


def sam_batch(
    scenes: Sequence[Scene],
    recipe: SamRecipe,
    art: Art,
    rng: np.random.Generator,
    *,
    prompted: int | None = None,
) -> SamBatch:
    """Draws prompts for the first `prompted` scenes, or for all, and stacks everything."""
    size = recipe.sizes.image_size
    labels = {concept.label: i for i, concept in enumerate(art.concepts)}
    cells = size // recipe.sizes.cell * 4
    images: list[UInt8Image] = []
    covers: list[npt.NDArray[np.uint8]] = []
    image_of_object: list[int] = []
    label_of_object: list[int] = []
    boxes: list[Floats] = []
    points: list[Floats] = []
    meant: list[list[int]] = []
    for b, scene in enumerate(scenes):
        first = len(image_of_object)
        of_image: list[int] = []
        restyled = rng.random() < recipe.restyled_share
        images.append(in_other_colours(scene.image, rng) if restyled else scene.image)
        covers.append(coverage(scene.masks, cells))
        image_of_object += [b] * len(scene.masks)
        label_of_object += [labels[name] for name in scene.concepts]
        if prompted is not None and b >= prompted:
            continue
        for k in _cycle(rng.permutation(len(scene.masks)), recipe.boxes_per_image):
            boxes.append(
                jittered(
                    scene.boxes_xyxy[k],
                    size,
                    jitter=recipe.box_jitter,
                    exact_share=recipe.exact_boxes,
                    rng=rng,
                )
            )
            of_image.append(first + k)
        for k in _cycle(rng.permutation(len(scene.masks)), recipe.points_per_image):
            points.append(_point_in(scene.masks[k], rng))
            of_image.append(first + k)
        background = np.logical_not(scene.masks.any(axis=0))
        for _ in range(recipe.background_points_per_image):
            points.append(_point_in(background, rng))
            of_image.append(BACKGROUND)
        meant.append(of_image)
    return SamBatch(
        images_BSS3=torch.from_numpy(np.stack(images)),
        cover_NYX=torch.from_numpy(np.concatenate(covers)),
        image_N=torch.tensor(image_of_object),
        label_N=torch.tensor(label_of_object),
        boxes_R4=torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        points_P2=torch.from_numpy(np.array(points, np.float32).reshape(-1, 2)),
        object_BP=torch.tensor(meant, dtype=torch.long),
        seeds=tuple(scene.seed for scene in scenes),
    )


def coverage(masks_NYX: npt.NDArray[np.bool_], cells: int) -> npt.NDArray[np.uint8]:
    """The share of each cell that a mask covers, (N, cells, cells), as parts of 255."""
    _, height, width = masks_NYX.shape
    down, across = height // cells, width // cells
    counts = np.zeros((len(masks_NYX), cells, cells), np.uint16)
    for y in range(down):  # a few strided sums take a third of the time of one over two axes
        for x in range(across):
            counts += masks_NYX[:, y::down, x::across]
    shares = counts * np.float32(255 / (down * across))
    parts: npt.NDArray[np.uint8] = np.rint(shares).astype(np.uint8)
    return parts


def mirrored(scene: Scene) -> Scene:
    """The scene from the other side, for shapes and names; its captions' positions are wrong."""
    x0, y0, x1, y1 = scene.boxes_xyxy.T
    width = scene.image.shape[1]
    return replace(
        scene,
        image=np.ascontiguousarray(scene.image[:, ::-1]),
        masks=np.ascontiguousarray(scene.masks[..., ::-1]),
        boxes_xyxy=np.stack([width - x1, y0, width - x0, y1], axis=1),
    )


def in_other_colours(rgb_YX3: UInt8Image, rng: np.random.Generator) -> UInt8Image:
    """The image with its hues turned, paler or stronger, darker or brighter; sometimes a negative.

    Shapes are what styles of drawing share, colours less so.
    """
    hsv = cv2.cvtColor(rgb_YX3, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(rng.integers(256))  # a full turn is 256, and wraps
    saturation = hsv[..., 1] * rng.uniform(0, 1.5)
    hsv[..., 1] = np.minimum(saturation, 255).astype(np.uint8)
    levels = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.6, 0.6))
    if rng.random() < 0.1:
        levels = levels[::-1]
    turned = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return np.asarray(cv2.LUT(turned, np.rint(levels).astype(np.uint8)), np.uint8)


def jittered(
    box_xyxy: Floats, size: int, *, jitter: float, exact_share: float, rng: np.random.Generator
) -> Floats:
    """The box with its sides moved as in SAM's training, or as it is for `exact_share` of them."""
    if rng.random() < exact_share:
        return box_xyxy
    sides = np.tile(box_xyxy[2:] - box_xyxy[:2], 2)
    # SAM's own jitter: a tenth of the side, at most 20 pixels of 1024.
    noise = np.clip(rng.normal(0, jitter, 4) * sides, -size / 50, size / 50)
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
