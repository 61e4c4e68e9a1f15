"""Image files to pixels: read, checked, decoded. numpy and Pillow only."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from sca_batch.errors import ImageError
from sca_batch.images.fetch import read_bytes
from sca_batch.images.formats import open_image
from sca_batch.images.pixels import UInt8Image, to_rgb
from sca_batch.images.policy import DEFAULT_MAX_PIXELS, ReadPolicy

__all__ = ["DecodedImage", "content_digest", "decode", "read_image"]

ANYWHERE = ReadPolicy()  # every file, no web


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
    policy: ReadPolicy = ANYWHERE,
    sha256: str | None = None,
) -> DecodedImage:
    """Reads and decodes one image, and compares its bytes with a digest if there is one.

    Raises:
        ImageError: with a code of its own for each; docs/FORMAT.md lists them.
    """
    content = read_bytes(uri, policy)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ImageError("checksum", f"the file's sha256 is {digest}, the manifest's {sha256}")
    return DecodedImage(decode(content, max_pixels=policy.max_pixels), digest)


def decode(content: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8Image:
    """Decodes the first frame of an image file to RGB, its EXIF orientation applied.

    Transparency is laid over white, 16-bit samples keep their upper eight bits; wider integers
    and floats that are no such samples are scaled by their range.

    Raises:
        ImageError: see `read_image`.
    """
    if not content:
        raise ImageError("empty_file", "the file has no bytes")
    try:
        with open_image(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    "too_large",
                    f"{width:,} x {height:,} pixels are more than --max-pixels {max_pixels:,}",
                )
            return to_rgb(image)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("oom", "this machine's memory does not suffice for the pixels") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except Exception as error:  # image libraries raise anything on hostile bytes
        text = f"{type(error).__name__}: {error}"
        code = "truncated" if "truncated" in text.lower() else "decode"
        raise ImageError(code, text) from None


def content_digest(uri: str, *, policy: ReadPolicy = ANYWHERE) -> str | None:
    """sha256 of an image file's bytes, hexadecimal; None when it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(uri, policy)).hexdigest()
    except ImageError:
        return None
