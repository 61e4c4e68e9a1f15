"""Files that are images: by their names, or by what is in them; and the one way to open them."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from sca_batch.errors import ImageError

__all__ = ["IMAGE_SUFFIXES", "has_image_suffix", "is_image", "looks_like_image", "open_image"]

# All that is ever opened. Pillow knows more, and some of its readers start programs on what the
# file says: Ghostscript on PostScript, for one.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")

# Written out: the system's table of types differs from machine to machine.
IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}


def has_image_suffix(name: str | Path) -> bool:
    """True when the name claims to be an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


_pillows_limit = threading.Lock()


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """A picture in one of `FORMATS`, of which only the head has been read, of any size.

    Raises:
        ImageError: with code `not_an_image`, for everything else.
    """
    known = _known_formats()
    # Our own limit on pixels follows, --max-pixels; Pillow's is the process's, and put back.
    with _pillows_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source, formats=known)
        except UnidentifiedImageError:
            raise ImageError("not_an_image", _unknown(source)) from None
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # readers of heads raise anything, and then it is none
            raise ImageError("not_an_image", f"{type(error).__name__}: {error}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = before


@functools.cache  # a failed import is looked for anew each time, and this is asked for every image
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(source: str | Path | BinaryIO) -> str:
    """Why a file is in none of the formats, and what would help."""
    head = b""
    if not isinstance(source, str | Path):
        source.seek(0)
        head = source.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim"):
        return "a HEIC picture; to read those: pip install pillow-heif"
    return f"in none of the formats that are read: {', '.join(FORMATS)}"


def looks_like_image(path: Path) -> bool:
    """True when a file's content begins as an image's; the suffix is not looked at."""
    try:
        with open_image(path):
            return True
    except (ImageError, OSError):
        return False


def is_image(path: Path) -> bool:
    """True for a file that is taken for an image.

    A name is taken at its word: a broken file gets a record that says what is wrong with it.
    """
    return has_image_suffix(path) or looks_like_image(path)
