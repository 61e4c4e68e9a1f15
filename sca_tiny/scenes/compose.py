"""Composed scenes: pictograms on backgrounds, with exact masks and captions that are true.

Everything about a scene follows from its seed. Seeds below `HELD_OUT_FIRST_SEED` are for training
and use the training styles; the rest are for judging, by default in styles no training scene
shows. Objects are listed back to front: a later object covers an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sca_tiny.scenes.art import HELD_OUT_STYLES, TRAIN_STYLES, Art, Pictogram
from sca_tiny.scenes.backgrounds import REFERENCE_PX, Canvas, background, blur
from sca_tiny.scenes.phrases import Arrangement, Mask, write_captions, write_plain_captions

Split = Literal["train", "held-out"]
Layout = Literal["natural", "dense"]

HELD_OUT_FIRST_SEED = 10**9

# In pixels of a canvas REFERENCE_PX wide.
OBJECT_PX = (28.0, 150.0)
NUM_OBJECTS = (3, 8)
REPEATS_SHARE = 0.25  # of the scenes, that show two or three of one thing side by side
DENSE_OBJECT_PX = (32.0, 72.0)
DENSE_NUM_OBJECTS = (12, 20)
DENSE_OVERLAP = 0.15  # of the smaller of two frames, at most
MAX_ROTATION_DEG = 25.0
MIN_VISIBLE_FRACTION = 0.4
MIN_VISIBLE_PX = 110  # below this even a person cannot name the drawing


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
    """A pictogram drawn at its final size: RGBA premultiplied float32, and where its corner is.

    `inside` are the rows and columns of the canvas that it can touch.
    """

    pictogram: Pictogram
    rgba: Canvas
    left: int
    top: int
    full_area: int
    full_mask: Mask
    inside: tuple[slice, slice]


def compose_scene(
    seed: int,
    art: Art,
    *,
    split: Split = "train",
    style: str | None = None,
    size_px: int = REFERENCE_PX,
    layout: Layout = "natural",
) -> Scene:
    """The scene that `seed` stands for: the same one on every call, given the same art.

    With `style` all objects are drawn in it, otherwise each one takes any style of the split.
    A training style is welcome in a held-out scene (new compositions of known drawings), a
    held-out style in a training scene is refused.

    A `dense` layout has many small objects that hardly overlap, and captions that do not relate
    them: more to learn from one image, for a model that has yet to learn what things are called.

    Raises:
        ValueError: the seed or the style belongs to the other split, `art` lacks the style, or
            there is no such layout.
    """
    if layout not in ("natural", "dense"):
        raise ValueError(f"layout {layout!r} is neither 'natural' nor 'dense'")
    if split not in ("train", "held-out"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'held-out'")
    if seed < 0 or (seed < HELD_OUT_FIRST_SEED) != (split == "train"):
        raise ValueError(
            f"seed {seed} is not a {split} seed: train is 0 to {HELD_OUT_FIRST_SEED - 1}, "
            f"held-out starts at {HELD_OUT_FIRST_SEED}"
        )
    styles = _allowed_styles(art, split, style)
    rng = np.random.default_rng(seed)
    dense = layout == "dense"
    placed = (_place_densely if dense else _place_objects)(rng, art, styles, size_px)
    image = _render(rng, placed, size_px)
    full_masks = np.stack([item.full_mask for item in placed])
    arrangement = Arrangement(visible_masks(full_masks), full_masks)
    pictograms = [item.pictogram for item in placed]
    concepts = [art.concept_by_label[pictogram.label] for pictogram in pictograms]
    colours = [pictogram.colour for pictogram in pictograms]
    write = write_plain_captions if dense else write_captions
    return Scene(
        seed=seed,
        image=image,
        masks=arrangement.masks,
        full_masks=full_masks,
        boxes_xyxy=arrangement.boxes_xyxy,
        concepts=tuple(concept.label for concept in concepts),
        styles=tuple(pictogram.style for pictogram in pictograms),
        colours=tuple(colours),
        captions=write(rng, concepts, colours, arrangement),
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
    """The rest of each silhouette under the ones after it, (N, H, W)."""
    masks = full_masks.copy()
    covered = np.zeros(full_masks.shape[1:], bool)
    for mask, full_mask in zip(masks[::-1], full_masks[::-1], strict=True):
        mask &= ~covered
        covered |= full_mask
    return masks


def _place_objects(
    rng: np.random.Generator, art: Art, styles: tuple[str, ...], size_px: int
) -> list[_Placed]:
    """Draws objects one above the other until the wanted number can all be seen well enough."""
    num_objects = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    repeats = int(rng.integers(1, 3)) if rng.random() < REPEATS_SHARE else 0
    placed: list[_Placed] = []
    seen: list[Mask] = []
    attempts = 0
    while len(placed) < num_objects:
        # A canvas that has filled up takes only smaller objects, so that three always fit.
        shrink = 0.97**attempts
        attempts += 1
        if attempts > 40 and len(placed) >= NUM_OBJECTS[0]:
            break
        if 1 <= len(placed) <= repeats:
            beside = placed[-1]
            pictogram = _pick_alike(rng, art, beside.pictogram)
            length_px = max(beside.rgba.shape[:2]) * rng.uniform(0.8, 1.1) * shrink
            candidate = _draw(rng, art, pictogram, length_px, [beside], 1.0, size_px)
        else:
            low, high = OBJECT_PX
            length_px = low * (high / low) ** rng.random() * shrink * size_px / REFERENCE_PX
            pictogram = _pick(rng, art, styles)
            candidate = _draw(rng, art, pictogram, length_px, placed, 0.35, size_px)
        if _all_can_be_seen(placed, seen, candidate, size_px):
            for mask in seen:
                mask[candidate.inside] &= ~candidate.full_mask[candidate.inside]
            seen.append(candidate.full_mask.copy())
            placed.append(candidate)
    return placed


def _place_densely(
    rng: np.random.Generator, art: Art, styles: tuple[str, ...], size_px: int
) -> list[_Placed]:
    """Draws many small objects where their frames hardly meet, the largest ones first."""
    num_objects = int(rng.integers(DENSE_NUM_OBJECTS[0], DENSE_NUM_OBJECTS[1] + 1))
    low, high = DENSE_OBJECT_PX
    # Many objects have to be small to fit; the sizes of few may be anything.
    high *= min(1.0, 1.1 * DENSE_NUM_OBJECTS[0] / num_objects)
    lengths = low * (high / low) ** np.sort(rng.random(num_objects))[::-1]
    frames = np.empty((0, 4))
    placed: list[_Placed] = []
    for length in lengths * size_px / REFERENCE_PX:
        pictogram = _pick(rng, art, styles)
        rgba = _turned(rng, art, pictogram, length, size_px)
        height, width = rgba.shape[:2]
        # All tries at once: a loop over them would cost more than drawing the object.
        corners = rng.uniform(0, [size_px - width, size_px - height], (100, 2)).round()
        tries = np.concatenate([corners, corners + np.array([width, height])], axis=1)
        free = np.flatnonzero(_shared_fraction(tries, frames) <= DENSE_OVERLAP)
        if not len(free):
            continue
        frames = np.concatenate([frames, tries[free[:1]]])
        left, top = (int(v) for v in corners[free[0]])
        placed.append(_put(pictogram, rgba, left, top, size_px))
    placed = [placed[i] for i in rng.permutation(len(placed))]
    seen = visible_masks(np.stack([item.full_mask for item in placed])).sum(axis=(1, 2))
    least = MIN_VISIBLE_PX * (size_px / REFERENCE_PX) ** 2
    # Without the thin ones, the others are covered less: none of them can fail now.
    return [
        item
        for item, visible in zip(placed, seen, strict=True)
        if visible >= max(least, MIN_VISIBLE_FRACTION * item.full_area)
    ]


def _shared_fraction(
    tries: NDArray[np.float64], frames: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share of the smaller frame that frames (N, 4) have in common with any of (M, 4), (N,)."""
    if not len(frames):
        return np.zeros(len(tries))
    low = np.maximum(tries[:, None, :2], frames[:, :2])
    high = np.minimum(tries[:, None, 2:], frames[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    smaller = np.minimum.outer(
        (tries[:, 2:] - tries[:, :2]).prod(axis=1), (frames[:, 2:] - frames[:, :2]).prod(axis=1)
    )
    fraction: NDArray[np.float64] = (shared / smaller).max(axis=1)
    return fraction


def _pick(rng: np.random.Generator, art: Art, styles: tuple[str, ...]) -> Pictogram:
    """Any concept, then any style that has it, then any drawing: concepts come up equally often."""
    labels = art.labels_drawn_in(styles)
    label = labels[rng.integers(len(labels))]
    having = [style for style in styles if (label, style) in art.by_label_and_style]
    drawings = art.by_label_and_style[label, having[rng.integers(len(having))]]
    return drawings[rng.integers(len(drawings))]


def _pick_alike(rng: np.random.Generator, art: Art, pictogram: Pictogram) -> Pictogram:
    """Another drawing of the same concept in the same style, if there is one."""
    drawings = art.by_label_and_style[pictogram.label, pictogram.style]
    return drawings[rng.integers(len(drawings))] if rng.random() < 0.3 else pictogram


def _draw(
    rng: np.random.Generator,
    art: Art,
    pictogram: Pictogram,
    length_px: float,
    others: list[_Placed],
    beside_share: float,
    size_px: int,
) -> _Placed:
    """A pictogram somewhere, with a chance of `beside_share` close to one of `others`."""
    rgba = _turned(rng, art, pictogram, length_px, size_px)
    height, width = rgba.shape[:2]
    x, y = _centre(rng, width, height, others, beside_share, size_px)
    return _put(pictogram, rgba, round(x - width / 2), round(y - height / 2), size_px)


def _turned(
    rng: np.random.Generator, art: Art, pictogram: Pictogram, length_px: float, size_px: int
) -> Canvas:
    """A pictogram scaled, turned, perhaps mirrored, and slightly recoloured: premultiplied RGBA."""
    mirrored = rng.random() < 0.3 and not art.concept_by_label[pictogram.label].upright
    rgba = _transform(
        pictogram,
        max(length_px, OBJECT_PX[0] * size_px / REFERENCE_PX),
        angle_deg=float(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG)),
        flip=bool(mirrored),
    )
    recoloured = np.asarray(cv2.transform(rgba, _appearance(rng)), np.float32)
    return np.clip(recoloured, 0, recoloured[..., 3:], out=recoloured)


def _put(pictogram: Pictogram, rgba: Canvas, left: int, top: int, size_px: int) -> _Placed:
    silhouette = np.ascontiguousarray(rgba[..., 3]) > 127.5
    full_mask = np.zeros((size_px, size_px), bool)
    inside, of_patch = _overlap(left, top, rgba.shape[1], rgba.shape[0], size_px)
    full_mask[inside] = silhouette[of_patch]
    area = int(np.count_nonzero(silhouette))
    return _Placed(pictogram, rgba, left, top, area, full_mask, inside)


def _centre(
    rng: np.random.Generator,
    width: int,
    height: int,
    others: list[_Placed],
    beside_share: float,
    size_px: int,
) -> tuple[float, float]:
    """A random centre, often close to another object so that there is something to say."""
    # At most a corner may leave the canvas; what is wider than it sits in the middle.
    low_x, low_y = min(0.42 * width, size_px / 2), min(0.42 * height, size_px / 2)
    x = rng.uniform(low_x, size_px - low_x)
    y = rng.uniform(low_y, size_px - low_y)
    if others and rng.random() < beside_share:
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


def _all_can_be_seen(
    placed: list[_Placed], seen: list[Mask], candidate: _Placed, size_px: int
) -> bool:
    """True where enough is left of everything when `candidate` covers some of what is seen."""
    least = MIN_VISIBLE_PX * (size_px / REFERENCE_PX) ** 2
    cover = candidate.full_mask[candidate.inside]
    if np.count_nonzero(cover) < max(least, MIN_VISIBLE_FRACTION * candidate.full_area):
        return False
    for item, mask in zip(placed, seen, strict=True):
        hidden = np.count_nonzero(mask[candidate.inside] & cover)
        # Counting all of a mask is dear, and most are far from the candidate.
        if hidden and np.count_nonzero(mask) - hidden < max(
            least, MIN_VISIBLE_FRACTION * item.full_area
        ):
            return False
    return True


@lru_cache(maxsize=256)
def _premultiplied(pictogram: Pictogram, level: int) -> NDArray[np.uint8]:
    """RGBA at full, half or quarter size: bilinear alone aliases below a half.

    Few are kept: there are thousands of drawings, and every worker process has its own cache.
    """
    rgba = np.ascontiguousarray(pictogram.rgba)
    opaque = cv2.cvtColor(rgba[..., 3], cv2.COLOR_GRAY2BGRA)
    opaque[..., 3] = 255
    scaled = cv2.multiply(rgba, opaque, scale=1 / 255)
    for _ in range(level):
        height, width = scaled.shape[:2]
        half = (max(width // 2, 1), max(height // 2, 1))
        scaled = cv2.resize(scaled, half, interpolation=cv2.INTER_AREA)
    return np.asarray(scaled, np.uint8)


def _transform(pictogram: Pictogram, length_px: float, *, angle_deg: float, flip: bool) -> Canvas:
    """The pictogram with its longer side at `length_px`, turned, premultiplied."""
    longest = max(pictogram.rgba.shape[:2])
    level = int(np.clip(np.floor(np.log2(1.2 * longest / length_px)), 0, 2))
    source = _premultiplied(pictogram, level)
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
    """The part of the canvas under a patch, as rows and columns of the canvas and of the patch."""
    x0, x1 = min(max(left, 0), size_px), min(max(left + width, 0), size_px)
    y0, y1 = min(max(top, 0), size_px), min(max(top + height, 0), size_px)
    return (
        (slice(y0, y1), slice(x0, x1)),
        (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
    )


def _render(rng: np.random.Generator, placed: list[_Placed], size_px: int) -> NDArray[np.uint8]:
    canvas = background(rng, size_px)
    shadow = rng.uniform(0.1, 0.45) if rng.random() < 0.7 else 0.0
    shift = rng.uniform(-0.05, 0.05), rng.uniform(0.01, 0.07)
    for item in placed:
        height, width = item.rgba.shape[:2]
        if shadow:
            _darken(canvas, item, shadow, shift)
        inside, of_patch = _overlap(item.left, item.top, width, height, size_px)
        patch = item.rgba[of_patch]
        canvas[inside] *= _three_channels(1 - patch[..., 3] / np.float32(255))
        canvas[inside] += cv2.cvtColor(patch, cv2.COLOR_RGBA2RGB)
    return _photograph(rng, canvas)


def _darken(canvas: Canvas, item: _Placed, strength: float, shift: tuple[float, float]) -> None:
    """Casts an object's soft shadow on what is already there."""
    height, width = item.rgba.shape[:2]
    longest = max(height, width)
    blur_px = max(1, round(longest * 0.06))
    alpha = cv2.copyMakeBorder(item.rgba[..., 3], *(2 * blur_px,) * 4, cv2.BORDER_CONSTANT)
    soft = cv2.blur(cv2.blur(alpha, (2 * blur_px + 1,) * 2), (blur_px + 1,) * 2)
    left = item.left - 2 * blur_px + round(shift[0] * longest)
    top = item.top - 2 * blur_px + round(shift[1] * longest)
    inside, of_patch = _overlap(left, top, soft.shape[1], soft.shape[0], canvas.shape[0])
    canvas[inside] *= _three_channels(1 - np.float32(strength / 255) * soft[of_patch])


def _three_channels(plane: Canvas) -> Canvas:
    """A plane (H, W) three times over: numpy is slow where it has to repeat the last axis."""
    return np.asarray(cv2.cvtColor(plane, cv2.COLOR_GRAY2RGB), np.float32)


def _photograph(rng: np.random.Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """The traces of a camera and a file format in a picture: exposure, blur, noise, JPEG."""
    canvas = canvas * np.float32(rng.uniform(0.93, 1.07)) + np.float32(rng.uniform(-6, 6))
    if rng.random() < 0.2:
        canvas = blur(canvas, rng.uniform(0.3, 0.8))
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
