"""Pixels in the forms that models take: RGB, oriented, resized, normalised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sca_batch.boxes import resized_size
from sca_batch.errors import ImageError

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "UInt8Image", "preprocess", "to_rgb"]

# ImageNet statistics, as SAM was trained with, for pixels in [0, 1]. float32 throughout, so that
# pixels are bit for bit those of the published pipeline.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

UInt8Image = npt.NDArray[np.uint8]


def to_rgb(image: Image.Image) -> UInt8Image:
    """A Pillow image of any mode as RGB uint8 (H, W, 3), its EXIF orientation applied.

    Raises:
        ImageError: with code `decode`, for pixels that are not finite numbers.
    """
    image.load()  # what is wrong with the pixels is told as it is
    return np.asarray(_without_alpha(_oriented(image)))


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # what stands there is no EXIF: the picture is as it is
        return image


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image).astype(np.float64)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(samples: npt.NDArray[np.float64]) -> UInt8Image:
    """Samples of no stated range as uint8: bytes, fractions and 16 bits by what they are."""
    if not np.isfinite(samples).all():
        raise ImageError("decode", "pixels that are not finite numbers")
    least, most = float(samples.min()), float(samples.max())
    if least >= 0 and most <= 1 and (samples % 1).any():
        samples = samples * 255
    elif least >= 0 and 255 < most <= 65535:
        samples = samples // 256
    elif least < 0 or most > 255:
        samples = (samples - least) * (255 / (most - least))
    return samples.round().astype(np.uint8)


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
