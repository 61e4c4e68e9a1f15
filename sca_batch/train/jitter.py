"""Horizontal flip and large-scale jitter in the arithmetic of the reference code.

Large-scale jitter (Simple Copy-Paste, arXiv:2012.07177): an image is scaled by a random factor and
cropped, or padded, to the square input.
"""

# Shape letters:  R regions   Y, X pixels of the image

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sca_batch.images.pixels import UInt8Image

__all__ = ["Draws", "draw", "flip", "jitter"]

Floats = npt.NDArray[np.float64]

# images.PIXEL_MEAN and PIXEL_STD in float64: the reference jitters in it, and truncates after.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406])
PIXEL_STD = np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True, slots=True)
class Draws:
    """Three uniform numbers: flip if the first is below its chance, the scale, where to crop."""

    flip: float
    scale: float
    crop: float


def draw(rng: np.random.Generator, scales: tuple[float, float]) -> Draws:
    """Draws in the reference's order: flip, scale, crop."""
    return Draws(float(rng.uniform()), float(rng.uniform(*scales)), float(rng.uniform()))


def flip(rgb: UInt8Image, boxes_R4: Floats) -> tuple[UInt8Image, Floats]:
    """Left becomes right, in the image and in the boxes."""
    width = rgb.shape[1]
    flipped = boxes_R4.copy()
    flipped[:, [0, 2]] = width - boxes_R4[:, [2, 0]]
    return np.ascontiguousarray(rgb[:, ::-1]), flipped


def jitter(
    rgb: UInt8Image, boxes_R4: Floats, *, size: int, scale: float, crop: float
) -> tuple[UInt8Image, Floats]:
    """A square uint8 image (size, size, 3) and the boxes in it, neither clipped nor filtered.

    The image is resized to fit a square of `scale * size`, cropped at the fraction `crop` of what
    is too much (one fraction for both axes), and padded with the mean colour. All of it is done on
    normalised float64 pixels without antialiasing and then truncated to uint8, so that values may
    be one too low; boxes become whole numbers, as they are in the reference. Training equality
    needs both.
    """
    height, width = rgb.shape[:2]
    factor = min(scale * size / height, scale * size / width)
    new_h, new_w = max(round(height * factor), 1), max(round(width * factor), 1)
    pixels_3YX = ((rgb / 255.0 - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    resized_3YX = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(pixels_3YX))[None],
        (new_h, new_w),
        mode="bilinear",
        align_corners=False,
    )[0].numpy()
    top, left = (round(max(0, side - size) * crop) for side in (new_h, new_w))
    cropped_3YX = resized_3YX[:, top : top + size, left : left + size]
    padded_3YX = np.zeros((3, size, size))
    padded_3YX[:, : cropped_3YX.shape[1], : cropped_3YX.shape[2]] = cropped_3YX
    restored_YX3 = (padded_3YX.transpose(1, 2, 0) * PIXEL_STD + PIXEL_MEAN) * 255.0
    # An overshoot of a rounding error would wrap around.
    square = np.clip(restored_YX3, 0, 255).astype(np.uint8)
    moved_R4 = np.trunc(boxes_R4 * np.array([new_w / width, new_h / height] * 2))
    return square, moved_R4 - np.array([left, top] * 2, dtype=np.float64)
