"""An image on its way through the pipeline, and the records that it can end as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sca_batch.captioners.captioner import EncodedImage
from sca_batch.errors import ImageError
from sca_batch.images.decode import DecodedImage
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef
from sca_batch.regions.proposal import Proposal

__all__ = ["Waiting", "failed_record", "finished_record", "out_of_memory_record"]


@dataclass(slots=True)
class Waiting:
    """An image on its way: a finished record, or regions that wait for their captions."""

    ref: ImageRef
    image: DecodedImage | None = None
    encoded: EncodedImage | None = None
    proposals: Sequence[Proposal] = ()
    record: ImageRecord | None = None


def finished_record(item: Waiting, captioned: Sequence[tuple[Proposal, Caption]]) -> ImageRecord:
    """The record of an image whose regions have their captions, or that has no regions."""
    assert item.image is not None
    height, width = item.image.size_hw
    return ImageRecord(
        ref=item.ref,
        status="ok" if captioned else "empty",
        sha256=item.image.sha256,
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
    return failed_record(item.ref, error, item.image)


def failed_record(
    ref: ImageRef, error: ImageError, image: DecodedImage | None = None
) -> ImageRecord:
    """The record of an image that failed, with its size if it was decoded."""
    height, width = image.size_hw if image else (None, None)
    return ImageRecord(
        ref=ref,
        status="failed",
        sha256=image.sha256 if image else None,
        height=height,
        width=width,
        error_code=error.code,
        error=str(error),
    )
