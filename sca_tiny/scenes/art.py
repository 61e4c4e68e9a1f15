"""Named pictogram art for composed training scenes, from openly licensed emoji packages.

The packages come from npm, once, into a cache folder; `ART_LICENSES.md` names their authors and
licences. `concepts.json` says which pictograms are used, and what each one shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sca_batch.errors import MissingPackageError, ScaError
from sca_tiny.scenes.words import Concept, IconName, read_concepts

ICON_PX = 128


class Package(NamedTuple):
    """One npm package of art, pinned, so that a seed means the same scene everywhere."""

    npm_name: str
    version: str

    @property
    def file_name(self) -> str:
        return f"{self.npm_name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "twemoji": Package("@iconify-json/twemoji", "1.2.5"),
    "noto": Package("@iconify-json/noto", "1.2.9"),
    "fluent-emoji-flat": Package("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "fluent-emoji": Package("@iconify-json/fluent-emoji", "1.2.7"),
    "fluent-emoji-3d": Package("@lobehub/fluent-emoji-3d", "1.1.0"),
    "emojione": Package("@iconify-json/emojione", "1.2.3"),
}
# Nothing else derives from emojione, so what it shows is new to a model that never saw it.
HELD_OUT_STYLES = ("emojione",)
TRAIN_STYLES = tuple(style for style in PACKAGES if style not in HELD_OUT_STYLES)


@dataclass(frozen=True, slots=True, eq=False)
class Pictogram:
    """One drawing in one style: RGBA uint8 (H, W, 4), alpha not premultiplied, no empty margin."""

    label: str
    style: str
    name: str
    colour: str | None
    rgba: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Art:
    """Every concept and every pictogram of it, in a fixed order.

    `origin` is the folder it was loaded from, if it was.
    """

    concepts: tuple[Concept, ...]
    pictograms: tuple[Pictogram, ...]
    origin: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Loaded art travels to another process by its name, or half a gigabyte of pixels would.
        if self.origin is None:
            return Art, (self.concepts, self.pictograms)
        return partial(load_art, self.origin, styles=self.styles), ()

    @cached_property
    def concept_by_label(self) -> dict[str, Concept]:
        return {concept.label: concept for concept in self.concepts}

    @cached_property
    def styles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pictogram.style for pictogram in self.pictograms))

    @cached_property
    def by_label_and_style(self) -> dict[tuple[str, str], tuple[Pictogram, ...]]:
        found: dict[tuple[str, str], list[Pictogram]] = {}
        for pictogram in self.pictograms:
            found.setdefault((pictogram.label, pictogram.style), []).append(pictogram)
        return {key: tuple(pictograms) for key, pictograms in found.items()}

    def labels_drawn_in(self, styles: tuple[str, ...]) -> tuple[str, ...]:
        """The concepts that at least one of the styles draws, in the table's order."""
        if styles not in self._labels:
            drawn = {p.label for p in self.pictograms if p.style in styles}
            self._labels[styles] = tuple(c.label for c in self.concepts if c.label in drawn)
        return self._labels[styles]

    @cached_property
    def _labels(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}


def default_art_dir() -> Path:
    """The cache folder for art: `SCA_ART_DIR`, or `~/.cache/sca/art`."""
    return Path(os.environ.get("SCA_ART_DIR", Path.home() / ".cache" / "sca" / "art"))


def load_art(art_dir: Path | None = None, *, styles: Iterable[str] = tuple(PACKAGES)) -> Art:
    """Every pictogram of the concept table in `styles`, fetched and rasterised on first use.

    The pixels stay in a file that processes share, and are read as scenes need them.

    Raises:
        ScaError: npm is missing, a package cannot be fetched, or it lacks a pictogram.
    """
    folder = art_dir or default_art_dir()
    folder.mkdir(parents=True, exist_ok=True)
    concepts = read_concepts()
    pictograms: list[Pictogram] = []
    for style in styles:
        if style not in PACKAGES:
            raise ScaError(f"art style {style!r} is not known. Choose from: {', '.join(PACKAGES)}")
        drawn = [(c, i) for c in concepts for i in c.icons if style in i.colours]
        stack, frames = _load_or_draw(style, [icon for _, icon in drawn], folder)
        for (concept, icon), drawing, (x0, y0, x1, y1) in zip(drawn, stack, frames, strict=True):
            pictograms.append(
                Pictogram(
                    concept.label, style, icon.name, icon.colours[style], drawing[y0:y1, x0:x1]
                )
            )
    return Art(concepts, tuple(pictograms), origin=folder)


def _load_or_draw(
    style: str, icons: list[IconName], folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One style's drawings (N, ICON_PX, ICON_PX, 4), mapped from a file, and what they fill.

    The second is (N, 4): x0, y0, x1, y1 of the pixels that can be seen, x1 and y1 exclusive.
    """
    wanted = json.dumps([*PACKAGES[style], ICON_PX, [(i.name, i.codepoint) for i in icons]])
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    pixels = folder / f"{style}-{ICON_PX}px-{digest}.npy"
    framing = folder / f"{style}-{ICON_PX}px-{digest}-frames.npy"
    if not pixels.exists():
        stack = drawings_of(style, icons, folder)
        # The pixels come last: where they are, the frames are too.
        _save(framing, np.stack([_frame_of(rgba) for rgba in stack]))
        _save(pixels, stack)
    # As a plain array: a slice of `np.memmap` costs several times as much.
    return np.asarray(np.load(pixels, mmap_mode="r")), np.load(framing)


def _save(path: Path, array: NDArray[Any]) -> None:
    # A name of its own: two processes that start together must not share a file.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
        np.save(file, array)
    Path(file.name).replace(path)


def drawings_of(style: str, icons: list[IconName], folder: Path) -> NDArray[np.uint8]:
    """Rasterises pictograms of one style, (N, ICON_PX, ICON_PX, 4), alpha not premultiplied.

    Raises:
        ScaError: the package cannot be fetched, or it lacks one of them.
    """
    archive = fetch_package(PACKAGES[style], folder)
    draw = _draw_webp if style == "fluent-emoji-3d" else _draw_svg
    return np.stack(draw(archive, icons))


def names_drawn_by(style: str, icons: Iterable[IconName], folder: Path) -> set[str]:
    """The names of those pictograms that a style's package has."""
    archive = fetch_package(PACKAGES[style], folder)
    with tarfile.open(archive) as tar:
        if style == "fluent-emoji-3d":
            members = _webp_members(tar)
            return {icon.name for icon in icons if _webp_name(members, icon) is not None}
        icon_set = json.loads(_read_member(tar, "package/icons.json", archive))
    known = icon_set["icons"].keys() | icon_set.get("aliases", {}).keys()
    return {icon.name for icon in icons if icon.name in known}


def fetch_package(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, fetched with `npm pack` unless it is there already.

    Raises:
        ScaError: npm is missing or could not fetch the package.
    """
    archive = folder / package.file_name
    if archive.exists():
        return archive
    wanted = f"{package.npm_name}@{package.version}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = ["npm", "pack", wanted, "--loglevel=error", "--pack-destination", scratch]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except FileNotFoundError as error:
            raise ScaError(
                f"npm is not installed, and the training art {wanted} is not in {folder}. "
                f"Install Node.js (it brings npm), or copy {package.file_name} into that folder."
            ) from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            # npm's first line has the error code; its last only points to a log file.
            reason = str(error.stderr or error).strip().splitlines()[0]
            raise ScaError(
                f"npm could not fetch the training art {wanted}: {reason}. "
                f"Check the network with: npm view {wanted} version; "
                f"or copy {package.file_name} into {folder}."
            ) from error
        packed = Path(scratch) / package.file_name
        if not packed.exists():
            raise ScaError(
                f"npm packed {wanted} under another name than {package.file_name}. "
                f"Update npm: npm install --global npm"
            )
        packed.replace(archive)
    return archive


def _draw_svg(archive: Path, icons: list[IconName]) -> list[NDArray[np.uint8]]:
    """Rasterises pictograms out of an Iconify package's icons.json."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingPackageError("resvg-py", "Drawing the training art") from error
    with tarfile.open(archive) as tar:
        icon_set = json.loads(_read_member(tar, "package/icons.json", archive))
    drawings = []
    for icon in icons:
        body, left, top, width, height = _svg_body(icon_set, icon.name, archive)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
        # A few icons are not square, and resvg keeps their aspect inside the size asked for.
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ICON_PX, height=ICON_PX))
        drawings.append(_pad_to_square(_decode_rgba(png)))
    return drawings


def _svg_body(
    icon_set: dict[str, Any], name: str, archive: Path
) -> tuple[str, float, float, float, float]:
    """An icon's SVG body and its viewBox; an alias stands for its parent."""
    while name in icon_set.get("aliases", {}):
        name = icon_set["aliases"][name]["parent"]
    try:
        icon = icon_set["icons"][name]
    except KeyError:
        raise ScaError(
            f"{archive.name} has no pictogram {name!r}, which concepts.json asks for. "
            f"Delete {archive} to fetch it again."
        ) from None
    frame = {"left": 0, "top": 0, "width": 16, "height": 16, **icon_set, **icon}
    return icon["body"], frame["left"], frame["top"], frame["width"], frame["height"]


def _draw_webp(archive: Path, icons: list[IconName]) -> list[NDArray[np.uint8]]:
    """Reads pictograms out of a package of WebP files named by code point."""
    drawings = []
    with tarfile.open(archive) as tar:
        members = _webp_members(tar)
        for icon in icons:
            name = _webp_name(members, icon)
            if name is None:
                raise ScaError(
                    f"{archive.name} has no pictogram {icon.codepoint} ({icon.name}), which "
                    f"concepts.json asks for. Delete {archive} to fetch it again."
                )
            rgba = _decode_rgba(_read_member(tar, name, archive))
            drawings.append(_resize_rgba(rgba, ICON_PX))
    return drawings


def _webp_members(tar: tarfile.TarFile) -> dict[str, str]:
    """Files by code point, without variation selectors: some names have them, some do not."""
    return {
        Path(name).stem.replace("-fe0f", ""): name
        for name in tar.getnames()
        if name.endswith(".webp")
    }


def _webp_name(members: dict[str, str], icon: IconName) -> str | None:
    return members.get(icon.codepoint.replace("-fe0f", ""))


def _read_member(tar: tarfile.TarFile, name: str, archive: Path) -> bytes:
    """One file's bytes; nothing is ever extracted to disk."""
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ScaError(f"{archive} has no {name}. Delete it to fetch it again.")
    return file.read()


def _decode_rgba(encoded: bytes) -> NDArray[np.uint8]:
    bgra = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgra is not None, "expected a picture"
    assert bgra.shape[2:] == (4,), "expected an alpha channel"
    return np.asarray(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA), np.uint8)


def _resize_rgba(rgba: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Resizes with alpha premultiplied, or transparent black would bleed into the edges."""
    premultiplied = rgba.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    small = cv2.resize(premultiplied, (size_px, size_px), interpolation=cv2.INTER_AREA)
    small[..., :3] *= 255 / np.maximum(small[..., 3:], 1)
    rounded: NDArray[np.uint8] = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return rounded


def _pad_to_square(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    square = np.zeros((ICON_PX, ICON_PX, 4), np.uint8)
    height, width = rgba.shape[:2]
    square[:height, :width] = rgba
    return square


def _frame_of(rgba: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what can be seen."""
    ys, xs = np.nonzero(rgba[..., 3] > 8)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
