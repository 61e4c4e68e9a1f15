"""The nouns that travel between rooms: an image to caption, its regions, its record.

Frames: a box is XYXY floats in pixels of the original, EXIF-oriented image; x1 and y1 are
exclusive. Sizes are (height, width). Masks are compressed COCO RLE dicts, `{"size": [h, w],
"counts": str}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypedDict

__all__ = [
    "BoxXYXY",
    "Caption",
    "CaptionedRegion",
    "ImageRecord",
    "ImageRef",
    "Json",
    "JsonObject",
    "Prompt",
    "PromptType",
    "Region",
    "Rle",
    "Status",
    "redacted",
]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
JsonObject = dict[str, Json]
BoxXYXY = tuple[float, float, float, float]
PromptType = Literal["grid_point", "box", "points", "mask"]
Status = Literal["ok", "empty", "failed"]


class Rle(TypedDict):
    """A mask as compressed COCO RLE: [height, width], and run lengths column by column."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One region that the manifest gives: a box, points with labels, or a mask.

    Several may be set: SAM reads points and a box together; a mask is prompted with its box.
    `labels` has one entry per point: 1 on the region, 0 off it.
    """

    box_xyxy: BoxXYXY | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask_rle: Rle | None = None
    prompt_id: str | None = None

    @property
    def prompt_type(self) -> PromptType:
        if self.mask_rle is not None:
            return "mask"
        return "points" if self.points_xy else "box"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One manifest row: where an image is, who it is, and what is known about it.

    `prompts` is None where regions are to be proposed and empty where the manifest says that
    there are none. `uri` is an absolute path or a URL; `key` identifies the row.
    """

    image_id: int
    key: str
    uri: str
    file_name: str
    prompts: tuple[Prompt, ...] | None = None
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Region:
    """One region of one image, before anyone has described it.

    Scores are SAM's own estimates, about [0, 1]; `stability_score` is None for given regions.
    `prompt_box_xyxy` is the box as it was given, unclipped. `crop_box_xywh` is the crop in which
    automatic mask generation found the region.
    """

    box_xyxy: BoxXYXY
    area: int
    prompt_type: PromptType
    mask_rle: Rle | None = None
    predicted_iou: float | None = None
    stability_score: float | None = None
    points_xy: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    prompt_box_xyxy: BoxXYXY | None = None
    crop_box_xywh: BoxXYXY | None = None
    prompt_id: str | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about one region.

    `logprob` is the mean log-probability per generated token in nats, the end token included.
    `alternatives` holds every caption kept for the region, (text, logprob), the best first; with
    several caption heads, one per head in the order of the heads.
    """

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CaptionedRegion:
    """A region and what was said about it; `region_id` counts from 0 within the image."""

    region_id: int
    region: Region
    caption: Caption


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image with its captioned regions, or with the reason why it failed."""

    ref: ImageRef
    status: Status
    sha256: str | None = None
    height: int | None = None
    width: int | None = None
    regions: tuple[CaptionedRegion, ...] = ()
    error_code: str | None = None
    error: str | None = None


# What a URL may carry that opens a door: a password, a signature, a token.
SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (
        re.compile(
            r"(?i)([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|signature|sig|se|sp|sv|token"
            r"|access_token|auth|key|api_?key|password|secret|credential)=)[^&;\s\"']+"
        ),
        r"\1***",
    ),
)


def redacted(text: str) -> str:
    """The text without the passwords and signatures of URLs in it, as records and logs show it."""
    if "://" in text:
        for pattern, replacement in SECRETS:
            text = pattern.sub(replacement, text)
    return text
