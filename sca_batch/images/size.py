"""The size of an image, without its pixels."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from sca_batch.errors import ImageError
from sca_batch.images.fetch import read_bytes
from sca_batch.images.formats import open_image
from sca_batch.images.policy import ReadPolicy
from sca_batch.storage.archives import split_member

__all__ = ["read_size_hw"]

EXIF_ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}  # orientations that swap width and height


def read_size_hw(path: Path) -> tuple[int, int] | None:
    """(height, width) after the EXIF orientation, from the head of the file; None if it is none.

    A member of an archive is read whole.
    """
    try:
        is_member = split_member(str(path))[1] is not None
        opened = io.BytesIO(read_bytes(str(path), ReadPolicy())) if is_member else path
        with open_image(opened) as image:
            width, height = image.size
            turned = _orientation(image) in TURNED
    except (ImageError, OSError):
        return None
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # what stands there is no EXIF: the picture is as it is
        return None
