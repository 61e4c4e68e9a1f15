"""Composed scenes: pictograms on backgrounds, with exact masks and captions that are true.

Everything about a scene follows from its seed. Seeds below `HELD_OUT_FIRST_SEED` are for training
and use the training styles; the rest are for judging, by default in styles no training scene
shows. Objects are listed back to front: a later object covers an earlier one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, islice
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sca_batch.errors import MissingPackageError
from sca_batch.train.art import HELD_OUT_STYLES, TRAIN_STYLES, Art, Concept, Pictogram

Split = Literal["train", "held-out"]
Mask = NDArray[np.bool_]
Canvas = NDArray[np.float32]

HELD_OUT_FIRST_SEED = 10**9

# Lengths are in pixels of a canvas this wide, and grow with the canvas.
REFERENCE_PX = 256
OBJECT_PX = (28.0, 150.0)
NUM_OBJECTS = (3, 8)
MAX_ROTATION_DEG = 25.0
NEVER_MIRRORED = ("clock",)  # its hands would tell another time
MIN_VISIBLE_FRACTION = 0.4
MIN_VISIBLE_PX = 110  # below this even a person cannot name the drawing

# What the words mean. Sizes are fractions of the canvas that the visible mask covers.
SMALL_BELOW = 0.02
LARGE_ABOVE = 0.08
COVERED_FROM = 0.06  # of the object's full silhouette, before one calls it "behind"
NEAR_WITHIN = 0.06  # of the canvas width, between two boxes
MAX_CAPTION_WORDS = 12

_AFTER_SUBJECT = re.compile(
    r" (?:partly hidden behind|in front of|behind|next to|beside|above|below|under"
    r"|on the|in the|at the|near the)\b"
)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One composed image and everything true about it, N objects from back to front.

    `image` is RGB uint8 (H, W, 3). `masks` (N, H, W) hold what can be seen and are disjoint;
    `full_masks` (N, H, W) hold whole silhouettes, as if nothing lay above them. `boxes_xyxy`
    float32 (N, 4) frame `masks`, x1 and y1 exclusive. `captions` gives every object several
    phrases, the first one the simplest.
    """

    seed: int
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    full_masks: NDArray[np.bool_]
    boxes_xyxy: NDArray[np.float32]
    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    colours: tuple[str | None, ...]
    captions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A pictogram drawn at its final size: RGBA premultiplied float32, and where its corner is."""

    pictogram: Pictogram
    rgba: Canvas
    left: int
    top: int
    full_area: int
    full_mask: Mask


def scene_seeds(split: Split, *, first: int = 0) -> Iterator[int]:
    """The seeds of a split in order, from its `first`-th."""
    if split == "train":
        return iter(range(first, HELD_OUT_FIRST_SEED))
    return count(HELD_OUT_FIRST_SEED + first)


def compose_scenes(
    art: Art,
    *,
    split: Split,
    first: int = 0,
    num_scenes: int | None = None,
    style: str | None = None,
    size_px: int = REFERENCE_PX,
) -> Iterator[Scene]:
    """Streams the scenes of a split, `num_scenes` of them or without end."""
    for seed in islice(scene_seeds(split, first=first), num_scenes):
        yield compose_scene(seed, art, split=split, style=style, size_px=size_px)


def compose_scene(
    seed: int,
    art: Art,
    *,
    split: Split = "train",
    style: str | None = None,
    size_px: int = REFERENCE_PX,
) -> Scene:
    """The scene that `seed` stands for: the same one on every call, given the same art.

    With `style` all objects are drawn in it, otherwise each one takes any style of the split.
    A training style is welcome in a held-out scene (new compositions of known drawings), a
    held-out style in a training scene is refused.

    Raises:
        ValueError: the seed or the style belongs to the other split, or `art` lacks the style.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'held-out'")
    if seed < 0 or (seed < HELD_OUT_FIRST_SEED) != (split == "train"):
        raise ValueError(
            f"seed {seed} is not a {split} seed: train is 0 to {HELD_OUT_FIRST_SEED - 1}, "
            f"held-out starts at {HELD_OUT_FIRST_SEED}"
        )
    styles = _allowed_styles(art, split, style)
    rng = np.random.default_rng(seed)
    placed = _place_objects(rng, art, styles, size_px)
    image = _render(rng, placed, size_px)
    full_masks = np.stack([item.full_mask for item in placed])
    masks = visible_masks(full_masks)
    pictograms = [item.pictogram for item in placed]
    concepts = [art.concept_by_label[pictogram.label] for pictogram in pictograms]
    colours = [pictogram.colour for pictogram in pictograms]
    return Scene(
        seed=seed,
        image=image,
        masks=masks,
        full_masks=full_masks,
        boxes_xyxy=np.stack([box_of(mask) for mask in masks]),
        concepts=tuple(concept.label for concept in concepts),
        styles=tuple(pictogram.style for pictogram in pictograms),
        colours=tuple(colours),
        captions=_write_captions(rng, concepts, colours, masks, full_masks),
    )


def _allowed_styles(art: Art, split: Split, style: str | None) -> tuple[str, ...]:
    wanted: Sequence[str]
    if style is not None:
        wanted = (style,)
    else:
        wanted = TRAIN_STYLES if split == "train" else HELD_OUT_STYLES
    if split == "train" and any(name in HELD_OUT_STYLES for name in wanted):
        raise ValueError(f"style {style!r} is held out, and may not be used to train")
    present = tuple(name for name in wanted if name in art.styles)
    if not present:
        raise ValueError(f"the art has none of the styles {list(wanted)}, only {list(art.styles)}")
    return present


def visible_masks(full_masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is left of each silhouette under the ones after it, (N, H, W)."""
    masks = full_masks.copy()
    covered = np.zeros(full_masks.shape[1:], bool)
    for mask, full_mask in zip(masks[::-1], full_masks[::-1], strict=True):
        mask &= ~covered
        covered |= full_mask
    return masks


def box_of(mask: Mask) -> NDArray[np.float32]:
    """The tightest box around a mask that is not empty, x1 and y1 exclusive."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _place_objects(
    rng: np.random.Generator, art: Art, styles: tuple[str, ...], size_px: int
) -> list[_Placed]:
    """Draws objects one above the other until the wanted number can all be seen well enough."""
    num_objects = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    placed: list[_Placed] = []
    attempts = 0
    while len(placed) < num_objects:
        # A canvas that has filled up takes only smaller objects, so that three always fit.
        shrink = 0.97**attempts
        attempts += 1
        if attempts > 40 and len(placed) >= NUM_OBJECTS[0]:
            break
        pictogram = _pick(rng, art, styles)
        candidate = _draw_at_random(rng, pictogram, placed, size_px, shrink)
        if _all_can_be_seen([*placed, candidate], size_px):
            placed.append(candidate)
    return placed


def _pick(rng: np.random.Generator, art: Art, styles: tuple[str, ...]) -> Pictogram:
    """Any concept, then any style, then any drawing of it: concepts come up equally often."""
    concept = art.concepts[rng.integers(len(art.concepts))]
    style = styles[rng.integers(len(styles))]
    drawings = art.by_label_and_style[concept.label, style]
    return drawings[rng.integers(len(drawings))]


def _draw_at_random(
    rng: np.random.Generator,
    pictogram: Pictogram,
    others: list[_Placed],
    size_px: int,
    shrink: float,
) -> _Placed:
    low, high = OBJECT_PX
    length_px = max(low, low * (high / low) ** rng.random() * shrink) * size_px / REFERENCE_PX
    rgba = _transform(
        pictogram,
        length_px,
        angle_deg=float(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG)),
        flip=bool(rng.random() < 0.3 and pictogram.label not in NEVER_MIRRORED),
    )
    rgba = cv2.transform(rgba, _appearance(rng))
    np.clip(rgba, 0, rgba[..., 3:], out=rgba)
    height, width = rgba.shape[:2]

    x, y = _centre(rng, width, height, others, size_px)
    left, top = round(x - width / 2), round(y - height / 2)
    silhouette = rgba[..., 3] > 127.5
    full_mask = np.zeros((size_px, size_px), bool)
    inside, of_patch = _overlap(left, top, width, height, size_px)
    full_mask[inside] = silhouette[of_patch]
    return _Placed(pictogram, rgba, left, top, int(silhouette.sum()), full_mask)


def _centre(
    rng: np.random.Generator, width: int, height: int, others: list[_Placed], size_px: int
) -> tuple[float, float]:
    """A random centre, often close to another object so that there is something to say."""
    # At most a corner may leave the canvas; what is wider than it sits in the middle.
    low_x, low_y = min(0.42 * width, size_px / 2), min(0.42 * height, size_px / 2)
    x = rng.uniform(low_x, size_px - low_x)
    y = rng.uniform(low_y, size_px - low_y)
    if others and rng.random() < 0.35:
        other = others[rng.integers(len(others))]
        other_height, other_width = other.rgba.shape[:2]
        angle = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.45, 1.1) / 2
        x = other.left + other_width / 2 + np.cos(angle) * reach * (width + other_width)
        y = other.top + other_height / 2 + np.sin(angle) * reach * (height + other_height)
    return (
        float(np.clip(x, low_x, size_px - low_x)),
        float(np.clip(y, low_y, size_px - low_y)),
    )


def _all_can_be_seen(placed: list[_Placed], size_px: int) -> bool:
    least = MIN_VISIBLE_PX * (size_px / REFERENCE_PX) ** 2
    covered = np.zeros((size_px, size_px), bool)
    for item in reversed(placed):
        visible = np.count_nonzero(item.full_mask & ~covered)
        if visible < max(least, MIN_VISIBLE_FRACTION * item.full_area):
            return False
        covered |= item.full_mask
    return True


@lru_cache(maxsize=4096)
def _pyramid(pictogram: Pictogram) -> tuple[NDArray[np.uint8], ...]:
    """Premultiplied RGBA at full, half and quarter size: bilinear alone aliases below a half."""
    premultiplied = pictogram.rgba.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    levels = [premultiplied]
    for _ in range(2):
        height, width = levels[-1].shape[:2]
        half = (max(width // 2, 1), max(height // 2, 1))
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    return tuple(np.rint(level).astype(np.uint8) for level in levels)


def _transform(pictogram: Pictogram, length_px: float, *, angle_deg: float, flip: bool) -> Canvas:
    """The pictogram with its longer side at `length_px`, turned, premultiplied."""
    longest = max(pictogram.rgba.shape[:2])
    level = int(np.clip(np.floor(np.log2(1.2 * longest / length_px)), 0, 2))
    source = _pyramid(pictogram)[level]
    height, width = source.shape[:2]
    scale = length_px / max(height, width)
    cos, sin = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    mirror = -1.0 if flip else 1.0
    out_width = int(np.ceil(abs(cos) * width + abs(sin) * height)) + 2
    out_height = int(np.ceil(abs(sin) * width + abs(cos) * height)) + 2
    linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    # Pixel centres sit at integers for OpenCV, so the middle of n pixels is (n - 1) / 2.
    middle_in = np.array([(width - 1) / 2, (height - 1) / 2])
    middle_out = np.array([(out_width - 1) / 2, (out_height - 1) / 2])
    affine = np.column_stack([linear, middle_out - linear @ middle_in])
    turned = cv2.warpAffine(source, affine, (out_width, out_height), flags=cv2.INTER_LINEAR)
    return np.asarray(turned, np.float32)


def _appearance(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random 4 x 4 colour change for premultiplied RGBA, mild enough for colour words to hold."""
    brightness = rng.uniform(-14, 14) / 255
    contrast = rng.uniform(0.88, 1.12)
    saturation = rng.uniform(0.85, 1.2)
    hue = np.radians(rng.uniform(-5, 5))
    cos, sin = np.cos(hue), np.sin(hue)
    # Turning about the grey axis (Rodrigues) changes hue and keeps greys grey.
    third, root = (1 - cos) / 3, sin / np.sqrt(3)
    turn = np.full((3, 3), third) + cos * np.eye(3)
    turn += root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = contrast * (saturation * np.eye(3) + (1 - saturation) * grey) @ turn
    matrix[:3, 3] = brightness + (1 - contrast) / 2
    return matrix


def _overlap(
    left: int, top: int, width: int, height: int, size_px: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch meets the canvas, as rows and columns of the canvas and of the patch."""
    x0, x1 = min(max(left, 0), size_px), min(max(left + width, 0), size_px)
    y0, y1 = min(max(top, 0), size_px), min(max(top + height, 0), size_px)
    return (
        (slice(y0, y1), slice(x0, x1)),
        (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
    )


def _render(rng: np.random.Generator, placed: list[_Placed], size_px: int) -> NDArray[np.uint8]:
    canvas = _background(rng, size_px)
    shadow = rng.uniform(0.1, 0.45) if rng.random() < 0.7 else 0.0
    shift = rng.uniform(-0.05, 0.05), rng.uniform(0.01, 0.07)
    for item in placed:
        height, width = item.rgba.shape[:2]
        if shadow:
            _darken(canvas, item, shadow, shift)
        inside, of_patch = _overlap(item.left, item.top, width, height, size_px)
        patch = item.rgba[of_patch]
        canvas[inside] *= 1 - patch[..., 3:] / 255
        canvas[inside] += patch[..., :3]
    return _photograph(rng, canvas)


def _darken(canvas: Canvas, item: _Placed, strength: float, shift: tuple[float, float]) -> None:
    """Casts an object's soft shadow on what is already there."""
    height, width = item.rgba.shape[:2]
    longest = max(height, width)
    blur_px = max(1, round(longest * 0.06))
    alpha = np.pad(item.rgba[..., 3], 2 * blur_px)
    soft = cv2.blur(cv2.blur(alpha, (2 * blur_px + 1,) * 2), (blur_px + 1,) * 2)
    left = item.left - 2 * blur_px + round(shift[0] * longest)
    top = item.top - 2 * blur_px + round(shift[1] * longest)
    inside, of_patch = _overlap(left, top, soft.shape[1], soft.shape[0], canvas.shape[0])
    canvas[inside] *= 1 - strength / 255 * soft[of_patch][..., None]


def _photograph(rng: np.random.Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """What a camera and a file format do to a picture: exposure, blur, noise, JPEG."""
    canvas = canvas * np.float32(rng.uniform(0.93, 1.07)) + np.float32(rng.uniform(-6, 6))
    if rng.random() < 0.2:
        canvas = _blur(canvas, rng.uniform(0.3, 0.8))
    if rng.random() < 0.3:
        noise = rng.standard_normal(canvas.shape, dtype=np.float32)
        canvas = canvas + noise * np.float32(rng.uniform(1, 7))
    image: NDArray[np.uint8] = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))]
        # JPEG keeps luminance best, and OpenCV would weigh red as blue if given RGB.
        _, encoded = cv2.imencode(".jpg", image[..., ::-1], quality)
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1].copy()
    return image


def _background(rng: np.random.Generator, size_px: int) -> Canvas:
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


def _blur(canvas: Canvas, sigma_px: float) -> Canvas:
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
    mixed: Canvas = (first + weight[..., None] * (second - first)).astype(np.float32)
    return mixed


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
    return _blur(_blend(weight, first, second), rng.uniform(0.4, 2.5) * size_px / REFERENCE_PX)


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
    return _blur(canvas, blur_px)


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
    canvas = _blur(np.asarray(resized, np.float32), blur_px * size_px / REFERENCE_PX)
    return _blend(np.full(canvas.shape[:2], rng.uniform(0, 0.5), np.float32), canvas, _colour(rng))


@cache
def _photographs() -> tuple[tuple[NDArray[np.uint8], bool], ...]:
    """Photographs inside the scikit-image wheel, public domain or CC0 (`ART_LICENSES.md`).

    Each comes with whether its subject is one of our concepts: a cat, a cup of coffee, a rocket.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingPackageError(
            "scikit-image", "Composing scenes", "pip install scikit-image"
        ) from error
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


def size_word(mask: Mask) -> str | None:
    """`small` or `large` by the share of the canvas a visible mask covers, None between."""
    share = np.count_nonzero(mask) / mask.size
    return "small" if share < SMALL_BELOW else "large" if share > LARGE_ABOVE else None


def position_word(mask: Mask) -> str:
    """Which ninth of the canvas holds the middle of the mask's box: `top left` to `center`."""
    x0, y0, x1, y1 = box_of(mask)
    height, width = mask.shape
    column = min(int((x0 + x1) / 2 / width * 3), 2)
    row = min(int((y0 + y1) / 2 / height * 3), 2)
    words = [["top", "", "bottom"][row], ["left", "", "right"][column]]
    return " ".join(word for word in words if word) or "center"


def relation_word(
    subject: int, other: int, masks: NDArray[np.bool_], full_masks: NDArray[np.bool_]
) -> str | None:
    """How one object lies to another: `in front of`, `behind`, `next to`, `above`, `below`.

    `in front of` and `behind` need one to hide a visible share of the other; the rest need two
    that are close, level or in line, and do not touch each other's silhouette.
    """
    lower, upper = min(subject, other), max(subject, other)
    hidden = np.count_nonzero(full_masks[lower] & masks[upper])
    if hidden:
        if hidden < COVERED_FROM * np.count_nonzero(full_masks[lower]):
            return None
        return "in front of" if subject == upper else "behind"
    if (full_masks[lower] & full_masks[upper]).any():
        return None
    ax0, ay0, ax1, ay1 = box_of(masks[subject])
    bx0, by0, bx1, by1 = box_of(masks[other])
    near_px = NEAR_WITHIN * masks.shape[2]
    shared_x = (min(ax1, bx1) - max(ax0, bx0)) / min(ax1 - ax0, bx1 - bx0)
    shared_y = (min(ay1, by1) - max(ay0, by0)) / min(ay1 - ay0, by1 - by0)
    if shared_y > 0.5 and 0 <= max(ax0, bx0) - min(ax1, bx1) <= near_px:
        return "next to"
    if shared_x > 0.5 and 0 <= by0 - ay1 <= near_px:
        return "above"
    if shared_x > 0.5 and 0 <= ay0 - by1 <= near_px:
        return "below"
    return None


def noun_phrase(concept: Concept, *, size: str | None = None, colour: str | None = None) -> str:
    """`a small pair of red scissors`: article, size, measure, colour, label."""
    words = " ".join(word for word in (size, concept.measure, colour, concept.label) if word)
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption_subject(caption: str) -> str:
    """The part of a caption that names its own object, without where it is or what is near it.

    Scoring by the words of a concept needs this: `a dog next to a banana` is no banana.
    """
    return _AFTER_SUBJECT.split(caption, maxsplit=1)[0]


def _write_captions(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    colours: Sequence[str | None],
    masks: NDArray[np.bool_],
    full_masks: NDArray[np.bool_],
) -> tuple[tuple[str, ...], ...]:
    sizes = [size_word(mask) for mask in masks]
    written = []
    for i, concept in enumerate(concepts):
        simple = noun_phrase(concept, colour=colours[i])
        sized = noun_phrase(concept, size=sizes[i], colour=colours[i])
        subjects = [simple, sized, noun_phrase(concept, size=sizes[i]), noun_phrase(concept)]
        phrases = [sized, noun_phrase(concept)]
        position = position_word(masks[i])
        for _ in range(2):
            phrases.append(f"{_any_of(rng, subjects)} {_any_of(rng, _positions(position))}")
        related = [(j, relation_word(i, j, masks, full_masks)) for j in range(len(concepts))]
        relations = [(j, word) for j, word in related if j != i and word is not None]
        for j, word in (relations[k] for k in rng.permutation(len(relations))[:2]):
            other = noun_phrase(
                concepts[j],
                size=sizes[j] if rng.random() < 0.25 else None,
                colour=colours[j] if rng.random() < 0.5 else None,
            )
            if concepts[j] is concept:
                other = f"another {noun_phrase(concept).split(' ', 1)[1]}"
            phrases.append(
                f"{_any_of(rng, subjects)} {_any_of(rng, _RELATION_WORDINGS[word])} {other}"
            )
        others = [
            phrases[k]
            for k in rng.permutation(len(phrases))
            if len(phrases[k].split()) <= MAX_CAPTION_WORDS
        ]
        written.append(tuple(dict.fromkeys([simple, *others])))
    return tuple(written)


_RELATION_WORDINGS = {
    "in front of": ("in front of",),
    "behind": ("behind", "behind", "partly hidden behind"),
    "next to": ("next to", "next to", "beside"),
    "above": ("above",),
    "below": ("below", "under"),
}


def _positions(position: str) -> tuple[str, ...]:
    if position == "center":
        return ("in the center", "in the middle")
    if " " in position:
        return (f"in the {position}", f"in the {position} corner")
    if position in ("left", "right"):
        return (f"on the {position}", f"on the {position} side")
    return (f"at the {position}", f"near the {position}")


def _any_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
