"""A picture of one image's regions: masks in colour, numbered, with their captions beside them."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sca_batch.boxes import rle_to_mask
from sca_batch.dataset.schema import RegionRow
from sca_batch.records import Rle

__all__ = ["draw_regions"]

MASK_OPACITY = 0.45
MIN_SIDE = 640  # small images are enlarged to this longest side, so that numbers can be read
LEGEND_WIDTH = 420


def draw_regions(
    rgb: npt.NDArray[np.uint8], regions: Sequence[RegionRow], *, title: str = ""
) -> Image.Image:
    """Paints regions over the image and lists their captions at its right.

    Args:
        rgb: uint8 (H, W, 3), EXIF orientation applied.
        regions: larger ones are painted first, so that those inside them stay visible. Regions
            without a mask show their box.
        title: a line above the captions.
    """
    order = sorted(range(len(regions)), key=lambda i: -int(regions[i]["area"]))
    canvas = rgb.astype(np.float32)
    for index in order:
        rle = regions[index]["segmentation"]
        if rle is not None:
            mask = rle_to_mask(rle)
            colour = np.array(_colour(index), dtype=np.float32)
            canvas[mask] = (1 - MASK_OPACITY) * canvas[mask] + MASK_OPACITY * colour
    factor = max(1.0, MIN_SIDE / max(rgb.shape[:2]))
    size = round(rgb.shape[1] * factor), round(rgb.shape[0] * factor)
    picture = Image.fromarray(canvas.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
    _outline(picture, regions, order, factor)
    return _with_legend(picture, regions, title)


def _outline(
    picture: Image.Image, regions: Sequence[RegionRow], order: list[int], factor: float
) -> None:
    draw = ImageDraw.Draw(picture)
    font = _font(max(12, picture.height // 45))
    for index in order:
        colour = _colour(index)
        rle = regions[index]["segmentation"]
        if rle is None:
            x, y, w, h = (value * factor for value in regions[index]["bbox"])
            draw.rectangle((x, y, x + w, y + h), outline=colour, width=2)
        else:
            _trace(draw, rle, colour, factor)
    for index in reversed(order):
        x, y = (value * factor for value in _anchor(regions[index]))
        _chip(draw, (x, y), str(index + 1), _colour(index), font)


def _trace(
    draw: ImageDraw.ImageDraw, rle: Rle, colour: tuple[int, int, int], factor: float
) -> None:
    import cv2

    mask = rle_to_mask(rle).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = [tuple(float(v) for v in (point + 0.5) * factor) for point in contour[:, 0]]
        if len(points) > 2:
            draw.line([*points, points[0]], fill=colour, width=2, joint="curve")


def _anchor(region: RegionRow) -> tuple[float, float]:
    """A point inside the mask, far from its edge: where the number does not hide its outline."""
    x, y, w, h = region["bbox"]
    if region["segmentation"] is None:
        return x + w / 2, y + h / 2
    import cv2

    mask = np.pad(rle_to_mask(region["segmentation"]).astype(np.uint8), 1)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(column) - 0.5, float(row) - 0.5


def _with_legend(picture: Image.Image, regions: Sequence[RegionRow], title: str) -> Image.Image:
    font, small = _font(17), _font(13)
    lines = [textwrap.wrap(row["caption"] or "(no words)", 42) or [""] for row in regions]
    height = max(picture.height, 52 + sum(22 * len(wrapped) + 26 for wrapped in lines))
    page = Image.new("RGB", (picture.width + LEGEND_WIDTH, height), (255, 255, 255))
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    left, top = picture.width + 20, 16
    draw.text((left, top), title or f"{len(regions)} regions", fill=(90, 90, 90), font=small)
    top += 30
    for index, (row, wrapped) in enumerate(zip(regions, lines, strict=True)):
        _chip(draw, (left + 13, top + 10), str(index + 1), _colour(index), small)
        for line in wrapped:
            draw.text((left + 36, top), line, fill=(20, 20, 20), font=font)
            top += 22
        scores = [f"caption {row['caption_score']:.2f}"]
        if row["predicted_iou"] is not None:
            scores.append(f"mask {row['predicted_iou']:.2f}")
        draw.text((left + 36, top), ", ".join(scores), fill=(130, 130, 130), font=small)
        top += 26
    return page


def _chip(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = draw.textbbox(centre, text, font=font, anchor="mm")
    box = (left - 5, top - 3, right + 5, bottom + 3)
    draw.rounded_rectangle(box, radius=6, fill=colour, outline=(255, 255, 255))
    draw.text(centre, text, fill=(255, 255, 255), font=font, anchor="mm")


def _colour(index: int) -> tuple[int, int, int]:
    # Hues a golden angle apart stay distinct however many there are.
    red, green, blue = colorsys.hls_to_rgb((index * 0.381966) % 1.0, 0.42, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
