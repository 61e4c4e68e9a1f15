"""Captions for one image at a time, for notebooks and scripts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sca_batch.boxes import is_box
from sca_batch.captioners.sca import ScaCaptioner
from sca_batch.captioners.settings import CaptionSettings
from sca_batch.errors import ScaError
from sca_batch.images.decode import DecodedImage, read_image
from sca_batch.images.pixels import to_rgb
from sca_batch.job.request import BatchingSettings
from sca_batch.model.load import load_model
from sca_batch.model.sca import ScaModel
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.records import ImageRecord, ImageRef, Prompt
from sca_batch.regions.settings import AutomaticMaskSettings, RegionSettings

__all__ = ["caption"]

AnyImage = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]
Boxes = Sequence[Sequence[float]] | npt.NDArray[np.floating]
Points = Sequence[Sequence[float]] | npt.NDArray[np.floating]


def caption(
    image: AnyImage,
    boxes: Boxes | None = None,
    points: Points | None = None,
    *,
    model: ScaModel | str = "sca-tiny",
    prompt: Literal["box", "point"] = "box",
    task: Literal["caption", "recognition"] = "caption",
    num_beams: int = 3,
    max_new_tokens: int = 19,
    automatic: AutomaticMaskSettings | None = None,
) -> ImageRecord:
    """Captions the regions of one image.

    Args:
        image: a path, a PIL image, or a uint8 array (H, W, 3), RGB.
        boxes: x0, y0, x1, y1 in pixels, one region each.
        points: x, y in pixels, one region each, after those of the boxes. Without boxes and
            points regions are proposed by automatic mask generation, with `automatic`'s settings.
        model: from `load_model`, or a name that it knows; a name's model is kept for the next call.

    Returns:
        The record: `record.regions[i].caption.text` and `record.regions[i].region`.

    Raises:
        ScaError: for boxes or points that are none, and for models that cannot be loaded.
        ImageError: for an image that cannot be read.

    Example:
        >>> from sca_batch import caption
        >>> record = caption("manifests/images/scene-1.png", boxes=[[20, 30, 120, 140]])
        >>> len(record.regions)
        1
    """
    loaded = _loaded(model) if isinstance(model, str) else model
    settings = CaptionSettings(
        task=task, prompt=prompt, num_beams=num_beams, max_new_tokens=max_new_tokens
    )
    regions = RegionSettings(
        automatic=automatic or AutomaticMaskSettings.for_model(loaded.config),
    )
    batches = BatchingSettings().on(
        cpu=loaded.device.type == "cpu", threads=torch.get_num_threads()
    )
    pipeline = Pipeline(loaded, ScaCaptioner(loaded, settings), regions, batches)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
    ref = ImageRef(
        image_id=1,
        key=name,
        uri=name,
        file_name=Path(name).name,
        prompts=_prompts(boxes, points),
    )
    return pipeline.run_one(ref, _decoded(image))


@lru_cache(maxsize=1)
def _loaded(name: str) -> ScaModel:
    return load_model(name)


def _decoded(image: AnyImage) -> DecodedImage:
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        rgb = to_rgb(image)
    elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        rgb = np.ascontiguousarray(image)
    else:
        raise ScaError(
            f"image is an array of {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB"
        )
    return DecodedImage(rgb, hashlib.sha256(rgb.tobytes()).hexdigest())


def _prompts(boxes: Boxes | None, points: Points | None) -> tuple[Prompt, ...] | None:
    if boxes is None and points is None:
        return None
    prompts = []
    for i, box in enumerate([] if boxes is None else _rows(boxes, "boxes", 4)):
        if not is_box(box) or box[2] < box[0] or box[3] < box[1]:
            raise ScaError(f"boxes[{i}] is {box}; expected x0, y0, x1, y1 in pixels")
        prompts.append(Prompt(box_xyxy=(box[0], box[1], box[2], box[3])))
    for i, point in enumerate([] if points is None else _rows(points, "points", 2)):
        if not np.isfinite(point).all():
            raise ScaError(f"points[{i}] is {point}; expected x, y in pixels")
        prompts.append(Prompt(points_xy=((point[0], point[1]),), labels=(1,)))
    return tuple(prompts)


def _rows(values: Boxes | Points, name: str, length: int) -> list[list[float]]:
    """A table of numbers as lists; one row alone is a table of one.

    Raises:
        ScaError: for anything that is no such table.
    """
    expected = "x0, y0, x1, y1" if length == 4 else "x, y"
    try:
        table = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        table = np.zeros(())
    if table.shape == (length,):
        table = table[None]
    if table.size == 0 and table.ndim:
        return []
    if table.ndim != 2 or table.shape[1] != length:
        raise ScaError(f"{name} are {values!r}; expected [{expected}] in pixels for each region")
    rows: list[list[float]] = table.tolist()
    return rows
