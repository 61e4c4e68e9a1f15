"""A manifest as what there is to caption: its rows with where their images are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from sca_batch.errors import ScaError
from sca_batch.manifests.formats import MANIFEST_SUFFIXES, OnProblem, jsonl_rows, manifest_rows
from sca_batch.manifests.listing import Listing, Unit, listing_frames
from sca_batch.manifests.row import Row
from sca_batch.manifests.values import BoxFormat
from sca_batch.records import redacted

__all__ = ["STDIN", "is_manifest", "manifest_images", "manifest_unit", "read_manifest"]

STDIN = "-"


def is_manifest(source: str) -> bool:
    """True for `-` and for names that end as a manifest's does."""
    return source == STDIN or Path(source).suffix.lower() in MANIFEST_SUFFIXES


def manifest_unit(source: str) -> Unit:
    """The name of a position in the manifest: line, row or index."""
    units: dict[str, Unit] = {".parquet": "row", ".json": "index"}
    return units.get(Path(source).suffix.lower(), "line")


def manifest_images(
    source: str,
    *,
    root: Path | None = None,
    box_format: BoxFormat | None = None,
    stdin: BinaryIO | None = None,
    on_problem: OnProblem | None = None,
) -> Iterator[tuple[int, Row, str, str]]:
    """Position, row, uri and file name of each image of one manifest, one at a time.

    `-` reads JSON lines from `stdin`. Relative paths start at the manifest's folder (for `-`, the
    working folder); file names are relative to `root`, by default that same folder. Problems that
    `on_problem` is told are passed over, see `manifest_rows`.

    Raises:
        ScaError: at the first thing that is wrong, with file, line or row, column and remedy.
    """
    if source == STDIN:
        folder = os.getcwd()
        rows = jsonl_rows(stdin or sys.stdin.buffer, "standard input", box_format)
    else:
        folder = os.path.dirname(os.path.abspath(source))
        rows = manifest_rows(Path(source), box_format, on_problem)
    start = os.path.normpath(root or folder)
    position = None
    for position, row in rows:
        yield position, row, *_locate(row.uri, folder, start)
    if position is None and on_problem is None:
        name = "standard input" if source == STDIN else source
        unit = manifest_unit(source)
        raise ScaError(
            f"{name}: no rows; expected one image per {'entry' if unit == 'index' else unit}"
        )


def read_manifest(
    source: str,
    *,
    root: Path | None = None,
    box_format: BoxFormat | None = None,
    stdin: BinaryIO | None = None,
) -> Listing:
    """The rows of one manifest, see `manifest_images`, checked and on disk.

    Raises:
        ScaError: at the first thing that is wrong, with file, line or row, column and remedy.
    """
    images = manifest_images(source, root=root, box_format=box_format, stdin=stdin)
    name = "standard input" if source == STDIN else source
    return Listing.of(name, listing_frames(images), manifest_unit(source))


def _locate(given: str, folder: str, root: str) -> tuple[str, str]:
    """A row's path -> where the image is, and its name relative to `root`."""
    if given.startswith("file://"):
        given = unquote(urlsplit(given).path)
    elif "://" in given:
        return given, redacted(given)
    uri = os.path.join(folder, given)
    path = os.path.normpath(uri)
    inside = root if root.endswith(os.sep) else root + os.sep
    if path.startswith(inside):
        return uri, path[len(inside) :]
    # An absolute path elsewhere stays: a chain of ../ would say nothing.
    return uri, path if os.path.isabs(given) else os.path.relpath(path, root)
