"""An image on its way through the pipeline, and the records that it can end as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sca_batch.captioners.captioner import EncodedImage
from sca_batch.errors import ImageError
from sca_batch.images.decode import DecodedImage
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef
from sca_batch.regions.proposal import Proposal

__all__ = ["Waiting", "failed_record", "finished_record", "out_of_memory_record"]


@dataclass(slots=True)
class Waiting:
    """An image on its way: a finished record, or regions that wait for their captions.

    Its pixels are let go of as soon as nobody will look at them again.
    """

    ref: ImageRef
    image: DecodedImage | None = None
    encoded: EncodedImage | None = None
    proposals: Sequence[Proposal] = ()
    record: ImageRecord | None = None
    sha256: str | None = None
    size_hw: tuple[int, int] | None = None

    @classmethod
    def of(cls, ref: ImageRef, image: DecodedImage) -> Waiting:
        return cls(ref, image=image, sha256=image.sha256, size_hw=image.size_hw)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels that wait with the image."""
        return 0 if self.image is None else self.image.rgb.nbytes

    def drop_pixels(self) -> None:
        """Lets go of the pixels; the embedding stays."""
        self.image = None
        if self.encoded is not None:
            self.encoded = replace(self.encoded, rgb=None)


def finished_record(item: Waiting, captioned: Sequence[tuple[Proposal, Caption]]) -> ImageRecord:
    """The record of an image whose regions have their captions, or that has no regions."""
    assert item.size_hw is not None
    height, width = item.size_hw
    return ImageRecord(
        ref=item.ref,
        status="ok" if captioned else "empty",
        sha256=item.sha256,
        height=height,
        width=width,
        regions=tuple(
            CaptionedRegion(i, proposal.region, caption)
            for i, (proposal, caption) in enumerate(captioned)
        ),
    )


def out_of_memory_record(item: Waiting) -> ImageRecord:
    """The record of an image that does not fit into the device's memory alone."""
    error = ImageError("oom", "the device's memory does not suffice for this image alone")
    return failed_record(item, error)


def failed_record(item: Waiting, error: ImageError) -> ImageRecord:
    """The record of an image that failed, with its size if it was decoded."""
    height, width = item.size_hw or (None, None)
    return ImageRecord(
        ref=item.ref,
        status="failed",
        sha256=item.sha256,
        height=height,
        width=width,
        error_code=error.code,
        error=str(error),
    )
