"""Backgrounds of composed scenes: colours, textures, clutter, photographs; nothing with a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from sca_batch.errors import MissingPackageError

__all__ = ["REFERENCE_PX", "Canvas", "background", "blur"]

Canvas = NDArray[np.float32]

# Lengths are in pixels of a canvas this wide, and grow with the canvas.
REFERENCE_PX = 256


def background(rng: np.random.Generator, size_px: int) -> Canvas:
    """Something without objects in it: RGB float32 (size_px, size_px, 3), about 0 to 255."""
    makers: dict[Callable[[np.random.Generator, int], Canvas], float] = {
        _plain: 0.12,
        _gradient: 0.16,
        _texture: 0.20,
        _pattern: 0.16,
        _clutter: 0.16,
        _photo: 0.20,
    }
    chosen = int(rng.choice(len(makers), p=list(makers.values())))
    return list(makers)[chosen](rng, size_px)


def blur(canvas: Canvas, sigma_px: float) -> Canvas:
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), sigma_px), np.float32)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random RGB colour; half of them pale or grey, as walls, tables and skies are."""
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        colour = colour.mean() + (colour - colour.mean()) * rng.uniform(0, 0.5)
        colour = 255 - (255 - colour) * rng.uniform(0.3, 1)
    return colour.astype(np.float32)


def _plain(rng: np.random.Generator, size_px: int) -> Canvas:
    canvas: Canvas = np.broadcast_to(_colour(rng), (size_px, size_px, 3)).copy()
    return canvas


def _gradient(rng: np.random.Generator, size_px: int) -> Canvas:
    """Between two colours along a line, or outward from a point."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, size_px, dtype=np.float32)] * 2)
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (np.cos(angle) * x + np.sin(angle) * y) / 2.83 + 0.5
    else:
        ramp = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / 2.83
    return _blend(ramp, _colour(rng), _colour(rng))


def _blend(weight: Canvas, first: NDArray[np.float32], second: NDArray[np.float32]) -> Canvas:
    by_colour = np.stack([second - first, first], axis=1).astype(np.float32)
    ends = cv2.merge([np.asarray(weight, np.float32), np.ones(weight.shape, np.float32)])
    return np.asarray(cv2.transform(ends, by_colour), np.float32)


def _texture(rng: np.random.Generator, size_px: int) -> Canvas:
    """Noise of several grain sizes between two colours: plaster, cloth, sand, clouds."""
    noise = np.zeros((size_px, size_px), np.float32)
    roughness = rng.uniform(0.4, 0.9)
    stretch = 2 ** rng.uniform(-1.5, 1.5) if rng.random() < 0.4 else 1.0
    total = 0.0
    for octave in range(2, 8):
        cells = 2**octave
        grid_wh = max(2, round(cells * stretch)), max(2, round(cells / stretch))
        grid = rng.random((grid_wh[1], grid_wh[0]), dtype=np.float32)
        strength = roughness**octave
        noise += strength * cv2.resize(grid, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
        total += strength
    noise = np.clip((noise / total - 0.5) * rng.uniform(1, 3) + 0.5, 0, 1)
    return _blend(noise, _colour(rng), _colour(rng))


def _pattern(rng: np.random.Generator, size_px: int) -> Canvas:
    """Stripes, checks or tiles at any angle."""
    period = rng.uniform(0.03, 0.35)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    x, y = np.meshgrid(*[np.linspace(0, 1, size_px, dtype=np.float32)] * 2)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + rng.random()
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + rng.random()
    kind = rng.integers(3)
    if kind == 0:
        weight = (u % 1 < rng.uniform(0.3, 0.7)).astype(np.float32)
    elif kind == 1:
        weight = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    else:
        grout = rng.uniform(0.04, 0.15)
        weight = ((u % 1 < grout) | (v % 1 < grout)).astype(np.float32)
    first = _colour(rng)
    second = first + (_colour(rng) - first) * np.float32(rng.uniform(0.15, 0.9))
    return blur(_blend(weight, first, second), rng.uniform(0.4, 2.5) * size_px / REFERENCE_PX)


def _clutter(rng: np.random.Generator, size_px: int) -> Canvas:
    """Many small shapes out of focus: something there, nothing to name."""
    canvas = _gradient(rng, size_px)
    for _ in range(rng.integers(15, 60)):
        colour = tuple(float(channel) for channel in _colour(rng))
        x, y = (int(v) for v in rng.integers(0, size_px, 2))
        reach = rng.uniform(0.015, 0.09) * size_px
        if rng.random() < 0.5:
            axes = (max(1, int(reach)), max(1, int(reach * rng.uniform(0.4, 1))))
            cv2.ellipse(canvas, (x, y), axes, rng.uniform(0, 180), 0, 360, colour, -1)
        else:
            corners = np.array([x, y]) + rng.uniform(-reach, reach, (rng.integers(3, 6), 2))
            cv2.fillConvexPoly(canvas, cv2.convexHull(corners.astype(np.int32)), colour)
    blur_px = rng.uniform(1.2, 4) * size_px / REFERENCE_PX
    return blur(canvas, blur_px)


def _photo(rng: np.random.Generator, size_px: int) -> Canvas:
    """A crop of a photograph, blurred and tinted at random."""
    photographs = _photographs()
    photograph, shows_a_concept = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = int(rng.uniform(0.4, 1) * min(height, width))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    crop = np.ascontiguousarray(photograph[top : top + side, left : left + side])
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    resized = cv2.resize(crop, (size_px, size_px), interpolation=cv2.INTER_AREA)
    # A sharp cat that carries no label would teach the model not to see cats.
    blur_px = rng.uniform(5, 9) if shows_a_concept else rng.uniform(0.1, 3)
    canvas = blur(np.asarray(resized, np.float32), blur_px * size_px / REFERENCE_PX)
    tint = rng.uniform(0, 0.5)
    towards = np.column_stack([(1 - tint) * np.eye(3), tint * _colour(rng)]).astype(np.float32)
    return np.asarray(cv2.transform(canvas, towards), np.float32)


@cache
def _photographs() -> tuple[tuple[NDArray[np.uint8], bool], ...]:
    """Photographs inside the scikit-image wheel, public domain or CC0 (`ART_LICENSES.md`).

    Each comes with whether its subject is one of our concepts: a cat, a cup of coffee, a rocket.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingPackageError("scikit-image", "Composing scenes") from error
    found = []
    for name, shows_a_concept in {
        "astronaut": True,
        "brick": False,
        "camera": True,
        "chelsea": True,
        "coffee": True,
        "coins": False,
        "grass": False,
        "gravel": False,
        "hubble_deep_field": False,
        "rocket": True,
    }.items():
        pixels = getattr(data, name)()
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        found.append((pixels, shows_a_concept))
    return tuple(found)
