"""Manifest files as listings: every row checked, images located, keys kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import polars as pl

from sca_batch.data.cells import BoxFormat
from sca_batch.data.coco_source import coco_rows
from sca_batch.data.columns import Row
from sca_batch.data.manifest_formats import (
    MANIFEST_SUFFIXES,
    TEXT_READERS,
    Placed,
    jsonl_rows,
    locate_image,
    parquet_rows,
)
from sca_batch.data.plan import LISTING_SCHEMA, Listing
from sca_batch.errors import ScaError

__all__ = ["MANIFEST_SUFFIXES", "STDIN", "is_manifest", "listing_frame", "read_manifest"]

STDIN = "-"

ROWS_AT_ONCE = 50_000  # Python objects alive while a manifest is read


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
    suffix = path.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        raise ScaError(
            f"{path}: {suffix or 'no suffix'} is not a manifest's; "
            f"expected {', '.join(MANIFEST_SUFFIXES)}, or - for JSON lines on standard input"
        )
    folder, name = Path(os.path.abspath(path)).parent, str(path)
    try:
        if suffix == ".parquet":
            return _listing(name, "row", folder, root, parquet_rows(path, name, box_format))
        with path.open("rb") as file:
            if suffix == ".json":
                return _listing(name, "index", folder, root, coco_rows(file.read(), name))
            rows = TEXT_READERS[suffix](file, name, box_format)
            return _listing(name, "line", folder, root, rows)
    except OSError as error:
        raise ScaError(f"{path}: {error.strerror or error}") from None


def listing_frame(rows: Iterable[tuple[int, Row, str, str]]) -> pl.DataFrame:
    """Position, row, uri and file name of each image -> a frame with `LISTING_SCHEMA`'s columns."""
    stream = iter(rows)
    chunks = [pl.DataFrame(schema=LISTING_SCHEMA)]
    while chunk := list(islice(stream, ROWS_AT_ONCE)):
        columns = {
            "position": [position for position, *_ in chunk],
            "given_number": [_number(row.given_id) for _, row, *_ in chunk],
            "given_id": [_text(row.given_id) for _, row, *_ in chunk],
            "uri": [uri for *_, uri, _ in chunk],
            "file_name": [file_name for *_, file_name in chunk],
            "prompts": [row.prompts for _, row, *_ in chunk],
            "extra": [row.extra for _, row, *_ in chunk],
        }
        chunks.append(pl.DataFrame(columns, schema=LISTING_SCHEMA))
    return pl.concat(chunks)


def _number(given_id: int | str | None) -> int | None:
    return given_id if isinstance(given_id, int) else None


def _text(given_id: int | str | None) -> str | None:
    return None if given_id is None else str(given_id)


def _listing(
    name: str,
    unit: Literal["line", "row", "index"],
    folder: Path,
    root: Path | None,
    rows: Iterable[Placed],
) -> Listing:
    base = str(folder)
    start = os.path.normpath(root or folder)
    frame = listing_frame((at, row, *locate_image(row.uri, base, start)) for at, row in rows)
    if frame.is_empty():
        raise ScaError(
            f"{name}: no rows; expected one image per {'entry' if unit == 'index' else unit}"
        )
    return Listing(name, frame, unit)
