"""Image files to pixels: read, decode, orient, resize, normalise. numpy and Pillow only."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sca_batch.boxes import resized_size
from sca_batch.errors import ImageError
from sca_batch.images.places import Places, read_bytes

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "DecodedImage",
    "Places",
    "content_digest",
    "decode",
    "looks_like_image",
    "preprocess",
    "read_image",
    "to_rgb",
]

DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs

# ImageNet statistics, as SAM was trained with, for pixels in [0, 1]. float32 throughout, so that
# pixels are bit for bit those of the published pipeline.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

ANYWHERE = Places()  # every file, no web

UInt8Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """EXIF-oriented RGB pixels, uint8 (H, W, 3), and the digest of the file they came from."""

    rgb: UInt8Image
    sha256: str

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.rgb.shape[0], self.rgb.shape[1]


def read_image(
    uri: str,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    places: Places = ANYWHERE,
    sha256: str | None = None,
) -> DecodedImage:
    """Reads and decodes one image, and compares its bytes with a digest if there is one.

    Raises:
        ImageError: with a code of its own for each; docs/FORMAT.md lists them.
    """
    content = read_bytes(uri, places)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ImageError("checksum", f"the file's sha256 is {digest}, the manifest's {sha256}")
    return DecodedImage(decode(content, max_pixels=max_pixels), digest)


def decode(content: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8Image:
    """Decodes the first frame of an image file to RGB, its EXIF orientation applied.

    Transparency is laid over white, 16-bit samples keep their upper eight bits.

    Raises:
        ImageError: see `read_image`.
    """
    if not content:
        raise ImageError("empty_file", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            # Our own limit follows; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageError(
                        "too_large",
                        f"{width:,} x {height:,} pixels are more than --max-pixels {max_pixels:,}",
                    )
                return to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not_an_image", "no image format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except Exception as error:  # image libraries raise anything on hostile bytes
        text = f"{type(error).__name__}: {error}"
        code = "truncated" if "truncated" in text.lower() else "decode"
        raise ImageError(code, text) from None


def content_digest(uri: str, *, places: Places = ANYWHERE) -> str | None:
    """sha256 of an image file's bytes, hexadecimal; None when it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(uri, places)).hexdigest()
    except ImageError:
        return None


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


def looks_like_image(path: Path) -> bool:
    """True when Pillow recognises the file by its content; the suffix is not looked at."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError):  # Pillow turns what its format readers raise into these two
        return False


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
