"""Files that are images: by their names, or by what is in them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "has_image_suffix", "is_image", "looks_like_image"]

# Written out: the system's table of types differs from machine to machine.
IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}


def has_image_suffix(name: str | Path) -> bool:
    """True when the name claims to be an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


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


def is_image(path: Path) -> bool:
    """True for a file that is taken for an image.

    A name is taken at its word: a broken file gets a record that says what is wrong with it.
    """
    return has_image_suffix(path) or looks_like_image(path)
