"""Pixels in the forms that models take: RGB, oriented, resized, normalised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sca_batch.boxes import resized_size

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "UInt8Image", "preprocess", "to_rgb"]

# ImageNet statistics, as SAM was trained with, for pixels in [0, 1]. float32 throughout, so that
# pixels are bit for bit those of the published pipeline.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

UInt8Image = npt.NDArray[np.uint8]


def to_rgb(image: Image.Image) -> UInt8Image:
    """A Pillow image of any mode as RGB uint8 (H, W, 3), its EXIF orientation applied."""
    return np.asarray(_without_alpha(ImageOps.exif_transpose(image)))


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        samples = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(samples >> 8, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def resize_longest_side(rgb: UInt8Image, longest_side: int) -> UInt8Image:
    """uint8 (H, W, 3) with its longest side at `longest_side`: Pillow's bilinear filter."""
    height, width = resized_size((rgb.shape[0], rgb.shape[1]), longest_side)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def preprocess(rgb: UInt8Image, image_size: int) -> npt.NDArray[np.float32]:
    """RGB uint8 (H, W, 3) -> float32 (3, S, S): resized, normalised, then padded right and bottom.

    Padding comes after normalising, so it holds the mean colour.
    """
    resized = resize_longest_side(rgb, image_size)
    height, width = resized.shape[:2]
    padded = np.zeros((3, image_size, image_size), dtype=np.float32)
    normalised = (resized / np.float32(255) - PIXEL_MEAN) / PIXEL_STD
    padded[:, :height, :width] = normalised.transpose(2, 0, 1)
    return padded
