"""A manifest as what there is to caption: its rows with where their images are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote, urlsplit

import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.formats import MANIFEST_SUFFIXES, jsonl_rows, manifest_rows
from sca_batch.manifests.listing import LISTING_SCHEMA, Listing
from sca_batch.manifests.row import Row
from sca_batch.manifests.values import BoxFormat
from sca_batch.records import redacted
from sca_batch.storage.spool import Spool

__all__ = ["STDIN", "is_manifest", "listing_frames", "locate", "read_manifest"]

STDIN = "-"

Unit = Literal["line", "row", "index"]  # what a place in the manifest is called

# Python objects alive while a manifest is read; rows with masks are long.
ROWS_AT_ONCE = 50_000
CHARACTERS_AT_ONCE = 8 << 20


def is_manifest(source: str) -> bool:
    """True for `-` and for names that end as a manifest's does."""
    return source == STDIN or Path(source).suffix.lower() in MANIFEST_SUFFIXES


def read_manifest(
    source: str,
    *,
    root: Path | None = None,
    box_format: BoxFormat | None = None,
    stdin: BinaryIO | None = None,
) -> Listing:
    """The rows of one manifest, checked. `-` reads JSON lines from `stdin`.

    Relative paths start at the manifest's folder (for `-`, the working folder); file names are
    relative to `root`, by default that same folder.

    Raises:
        ScaError: at the first thing that is wrong, with file, line or row, column and remedy.
    """
    if source == STDIN:
        name = "standard input"
        rows = jsonl_rows(stdin or sys.stdin.buffer, name, box_format)
        return _listing(name, "line", Path.cwd(), root, rows)
    path = Path(source)
    folder = Path(os.path.abspath(path)).parent
    units: dict[str, Unit] = {".parquet": "row", ".json": "index"}
    unit = units.get(path.suffix.lower(), "line")
    return _listing(str(path), unit, folder, root, manifest_rows(path, box_format, or_stdin=True))


def listing_frames(rows: Iterable[tuple[int, Row, str, str]]) -> Iterator[pl.DataFrame]:
    """Position, row, uri and file name of each image -> frames with `LISTING_SCHEMA`'s columns."""
    for chunk in _chunks(rows):
        columns = {
            "position": [position for position, *_ in chunk],
            "given_number": [_number(row.given_id) for _, row, *_ in chunk],
            "given_id": [_text(row.given_id) for _, row, *_ in chunk],
            "uri": [uri for *_, uri, _ in chunk],
            "file_name": [file_name for *_, file_name in chunk],
            "prompts": [row.prompts for _, row, *_ in chunk],
            "extra": [row.extra for _, row, *_ in chunk],
            "size": [None] * len(chunk),
            "etag": [None] * len(chunk),
        }
        yield pl.DataFrame(columns, schema=LISTING_SCHEMA)


def _chunks(rows: Iterable[tuple[int, Row, str, str]]) -> Iterator[list[tuple[int, Row, str, str]]]:
    chunk: list[tuple[int, Row, str, str]] = []
    characters = 0
    for placed in rows:
        chunk.append(placed)
        characters += len(placed[1].prompts or "") + len(placed[1].extra)
        if len(chunk) == ROWS_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _number(given_id: int | str | None) -> int | None:
    return given_id if isinstance(given_id, int) else None


def _text(given_id: int | str | None) -> str | None:
    return None if given_id is None else str(given_id)


def _listing(
    name: str,
    unit: Unit,
    folder: Path,
    root: Path | None,
    rows: Iterable[tuple[int, Row]],
) -> Listing:
    base = str(folder)
    start = os.path.normpath(root or folder)
    located = ((at, row, *locate(row.uri, base, start)) for at, row in rows)
    spool = Spool.of(listing_frames(located), LISTING_SCHEMA)
    if not len(spool):
        raise ScaError(
            f"{name}: no rows; expected one image per {'entry' if unit == 'index' else unit}"
        )
    return Listing(name, spool, unit)


def locate(given: str, folder: str, root: str) -> tuple[str, str]:
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
