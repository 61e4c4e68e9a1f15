"""Real images for int8: ranges are measured on some, plans are compared on the others."""

# Shape letters:  S pixels of the square input   R regions of one image

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sca_batch.boxes import to_model_frame
from sca_batch.checks.record import default_boxes
from sca_batch.errors import ImageError, ScaError
from sca_batch.images.decode import read_image
from sca_batch.images.pixels import preprocess
from sca_batch.plan.plan import plan_refs
from sca_batch.plan.sources import plan_sources
from sca_batch.records import ImageRef

__all__ = ["Pictures", "read_pictures"]

MOST = 256  # more change ranges hardly, and every one is run through the float32 encoder


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images that are read anew each time they are looked at, as a model sees them.

    Boxes are the manifest's where it has any, else three drawn ones.
    """

    refs: tuple[ImageRef, ...]
    image_size: int

    def calibrating(self) -> Pictures:
        """Every other image, the first one too: int8 ranges are measured on these."""
        return Pictures(self.refs[0::2], self.image_size)

    def comparing(self) -> Pictures:
        """The others: plans are compared on what they were not calibrated with."""
        return Pictures(self.refs[1::2], self.image_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (1, 3, S, S) and boxes (R, 4) in the frame of the square input, per image."""
        for ref in self.refs:
            try:
                rgb = read_image(ref.uri).rgb
            except ImageError as error:
                raise ScaError(f"{ref.key}: {error}") from None
            size_hw = rgb.shape[:2]
            given = [prompt.box_xyxy for prompt in ref.prompts or () if prompt.box_xyxy]
            boxes = np.asarray(given or default_boxes(size_hw), dtype=np.float64)
            pixels = torch.from_numpy(preprocess(rgb, self.image_size))[None]
            yield pixels, torch.from_numpy(to_model_frame(boxes, size_hw, self.image_size))

    def digest(self) -> str:
        """SHA-256 of all pixels, hex."""
        digest = hashlib.sha256()
        for pixels, _ in self:
            digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()


def read_pictures(sources: Sequence[str], image_size: int) -> Pictures:
    """The images of folders, files or manifests; of none, the sample that comes with this package.

    Raises:
        ScaError: for a source that is missing, and for fewer than two images.
    """
    names = [str(source) for source in sources] or [str(_sample())]
    plan = plan_sources(names)
    if len(plan) < 2:
        raise ScaError(
            f"{names[0]}: {len(plan)} images; int8 needs one to calibrate and one to compare, and "
            "does better with a hundred"
        )
    refs = tuple(plan_refs(plan))
    # Spread over all of them: neighbours in a folder look alike.
    step = -(-len(refs) // MOST)
    return Pictures(refs[::step], image_size)


def _sample() -> Path:
    package = Path(__file__).parents[1]
    shipped = package / "assets/manifests"
    folder = shipped if shipped.is_dir() else package.parent / "manifests"
    return folder / "sample-regions.jsonl"
