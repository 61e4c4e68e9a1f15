"""Images with captioned regions to tensors: regions, phrases and frames are chosen here."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  B images   N regions of one image   R = B * N, image by image   Y, X its pixels
#                 S pixels of the square input   L caption ids   D, H, W image embedding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sca_batch.boxes import clip_xyxy, to_model_frame
from sca_batch.images.pixels import UInt8Image, preprocess
from sca_batch.manifests.references import CaptionedImage
from sca_batch.model.tokenizer import CaptionTokenizer

__all__ = [
    "CaptionBatch", "Draws", "RegionSample", "collate", "draw", "flip", "inference_sample",
    "jitter", "pad_ids", "training_sample",
]  # fmt: skip

EMPTY = 1e-5  # pixels: a side of at most this is no region to train on (the reference's)

# images.PIXEL_MEAN and PIXEL_STD in float64: the reference jitters in it, and truncates after.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406])
PIXEL_STD = np.array([0.229, 0.224, 0.225])

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RegionSample:
    """One image as the model sees it, and the regions of it that count, in order.

    `boxes_N4` are pixels of the square input, float64; `region_N` says which regions of the
    manifest's row they are. `pixels_3SS` is None where the embedding was cached, under
    `cache_name`.
    """

    key: str
    task: str
    boxes_N4: Floats
    region_N: npt.NDArray[np.int64]
    phrases: tuple[str, ...]
    size_hw: tuple[int, int]  # of the image before it was resized
    pixels_3SS: npt.NDArray[np.float32] | None = None
    embedding_DHW: npt.NDArray[np.float32] | None = None
    cache_name: str | None = None


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """Tensors of some images with the same number of regions each.

    `attention_RL` is 1 on caption ids, the end id included, and 0 on right padding. Images whose
    embedding was cached have one in `embeddings`, the others are in `pixels_B3SS`, in order.
    """

    boxes_R4: Tensor
    image_R: Tensor
    ids_RL: Tensor
    attention_RL: Tensor
    tasks: tuple[str, ...]  # one per region
    keys: tuple[str, ...]  # one per image
    pixels_B3SS: Tensor | None
    embeddings: tuple[Tensor | None, ...]
    cache_names: tuple[str | None, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # images, by why

    @property
    def counts(self) -> dict[str, int]:
        """Numbers that a step's log adds up."""
        return {"images": len(self.keys), "regions": len(self.boxes_R4), **self.left_out}

    def to(self, device: torch.device) -> CaptionBatch:
        """The same on a device; boxes stay float64, as the reference's."""
        return replace(
            self,
            boxes_R4=self.boxes_R4.to(device),
            image_R=self.image_R.to(device),
            ids_RL=self.ids_RL.to(device),
            attention_RL=self.attention_RL.to(device),
            pixels_B3SS=None if self.pixels_B3SS is None else self.pixels_B3SS.to(device),
            embeddings=tuple(None if e is None else e.to(device) for e in self.embeddings),
        )


def training_sample(
    image: CaptionedImage,
    rgb: UInt8Image,
    rng: np.random.Generator,
    *,
    size: int,
    most_regions: int,
    draws: Draws | None,
    flip_chance: float,
    with_jitter: bool,
    with_pixels: bool = True,
) -> RegionSample | None:
    """At most `most_regions` regions in random order with one random phrase each.

    Boxes are clipped to the image; what is empty then, or after the crop, is dropped before
    regions are drawn. None where nothing is left. `draws` are those of flip and jitter.
    """
    boxes_N4 = clip_xyxy(image.boxes_xyxy, rgb.shape[:2])
    full = _not_empty(boxes_N4)
    if draws is not None and draws.flip < flip_chance:
        rgb, boxes_N4 = flip(rgb, boxes_N4)
    if draws is not None and with_jitter:
        rgb, boxes_N4 = jitter(rgb, boxes_N4, size=size, scale=draws.scale, crop=draws.crop)
        boxes_N4 = clip_xyxy(boxes_N4, rgb.shape[:2])
    usable = np.flatnonzero(full & _not_empty(boxes_N4))
    chosen = rng.permutation(usable)[:most_regions]
    if not len(chosen):
        return None
    return RegionSample(
        key=image.key,
        task=image.task,
        boxes_N4=to_model_frame(boxes_N4[chosen], rgb.shape[:2], size),
        region_N=chosen,
        size_hw=(rgb.shape[0], rgb.shape[1]),
        phrases=tuple(image.phrases[k][rng.integers(len(image.phrases[k]))] for k in chosen),
        pixels_3SS=preprocess(rgb, size) if with_pixels else None,
    )


def inference_sample(image: CaptionedImage, rgb: UInt8Image, *, size: int) -> RegionSample:
    """All regions in the manifest's order, even empty ones, with their first phrases.

    Boxes are clipped to the image first, as the reference's evaluation does.
    """
    boxes_N4 = clip_xyxy(image.boxes_xyxy, rgb.shape[:2])
    return RegionSample(
        key=image.key,
        task=image.task,
        boxes_N4=to_model_frame(boxes_N4, rgb.shape[:2], size),
        region_N=np.arange(len(boxes_N4)),
        size_hw=(rgb.shape[0], rgb.shape[1]),
        phrases=tuple(texts[0] for texts in image.phrases),
        pixels_3SS=preprocess(rgb, size),
    )


def collate(samples: Sequence[RegionSample], tokenizer: CaptionTokenizer) -> CaptionBatch:
    """Stacks images; every one keeps as many regions as the one with the fewest has."""
    fewest = min(len(sample.boxes_N4) for sample in samples)
    ids = [tokenizer.encode(text) for sample in samples for text in sample.phrases[:fewest]]
    ids_RL, attention_RL = pad_ids(ids, tokenizer.eos_token_id)
    pixels = [sample.pixels_3SS for sample in samples if sample.pixels_3SS is not None]
    return CaptionBatch(
        boxes_R4=torch.from_numpy(np.concatenate([s.boxes_N4[:fewest] for s in samples])),
        image_R=torch.arange(len(samples)).repeat_interleave(fewest),
        ids_RL=ids_RL,
        attention_RL=attention_RL,
        tasks=tuple(sample.task for sample in samples for _ in range(fewest)),
        keys=tuple(sample.key for sample in samples),
        pixels_B3SS=torch.from_numpy(np.stack(pixels)) if pixels else None,
        embeddings=tuple(
            None if s.embedding_DHW is None else torch.from_numpy(s.embedding_DHW) for s in samples
        ),
        cache_names=tuple(sample.cache_name for sample in samples),
        sizes_hw=tuple(sample.size_hw for sample in samples),
    )


def pad_ids(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids (R, L) with `filler` on the right, and the attention: 1 on ids, 0 on padding.

    Padding is told by the mask alone: an end id that is also the filler would be lost otherwise.
    """
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids_RL = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)
    length_R = torch.tensor([len(row) for row in rows])
    return ids_RL, (torch.arange(ids_RL.shape[1]) < length_R[:, None]).long()


def _not_empty(boxes_N4: Floats) -> npt.NDArray[np.bool_]:
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    kept: npt.NDArray[np.bool_] = np.all(sides_N2 > EMPTY, axis=1)
    return kept


@dataclass(frozen=True, slots=True)
class Draws:
    """Three uniform numbers: flip if the first is below its chance, the scale, where to crop."""

    flip: float
    scale: float
    crop: float


def draw(rng: np.random.Generator, scales: tuple[float, float]) -> Draws:
    """Draws in the reference's order: flip, scale, crop."""
    return Draws(float(rng.uniform()), float(rng.uniform(*scales)), float(rng.uniform()))


def flip(rgb: UInt8Image, boxes_R4: Floats) -> tuple[UInt8Image, Floats]:
    """Left becomes right, in the image and in the boxes."""
    width = rgb.shape[1]
    flipped = boxes_R4.copy()
    flipped[:, [0, 2]] = width - boxes_R4[:, [2, 0]]
    return np.ascontiguousarray(rgb[:, ::-1]), flipped


def jitter(
    rgb: UInt8Image, boxes_R4: Floats, *, size: int, scale: float, crop: float
) -> tuple[UInt8Image, Floats]:
    """A square uint8 image (size, size, 3) and the boxes in it, neither clipped nor filtered.

    Large-scale jitter (Simple Copy-Paste, arXiv:2012.07177) in the reference's arithmetic.

    The image is resized to fit a square of `scale * size`, cropped at the fraction `crop` of what
    is too much (one fraction for both axes), and padded with the mean colour. All of it is done on
    normalised float64 pixels without antialiasing and then truncated to uint8, so that values may
    be one too low; boxes become whole numbers, as they are in the reference. Training equality
    needs both.
    """
    height, width = rgb.shape[:2]
    factor = min(scale * size / height, scale * size / width)
    new_h, new_w = max(round(height * factor), 1), max(round(width * factor), 1)
    pixels_3YX = ((rgb / 255.0 - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    resized_3YX = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(pixels_3YX))[None],
        (new_h, new_w),
        mode="bilinear",
        align_corners=False,
    )[0].numpy()
    top, left = (round(max(0, side - size) * crop) for side in (new_h, new_w))
    cropped_3YX = resized_3YX[:, top : top + size, left : left + size]
    padded_3YX = np.zeros((3, size, size))
    padded_3YX[:, : cropped_3YX.shape[1], : cropped_3YX.shape[2]] = cropped_3YX
    restored_YX3 = (padded_3YX.transpose(1, 2, 0) * PIXEL_STD + PIXEL_MEAN) * 255.0
    # An overshoot of a rounding error would wrap around.
    square = np.clip(restored_YX3, 0, 255).astype(np.uint8)
    moved_R4 = np.trunc(boxes_R4 * np.array([new_w / width, new_h / height] * 2))
    return square, moved_R4 - np.array([left, top] * 2, dtype=np.float64)
