"""Manifest files, one reader per format, each a stream of checked rows with their places."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote, urlsplit

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.data.cells import BoxFormat
from sca_batch.data.coco_source import coco_rows
from sca_batch.data.columns import Row, parse_row
from sca_batch.data.plan import LISTING_SCHEMA, Listing
from sca_batch.errors import ScaError
from sca_batch.records import redacted

__all__ = ["MANIFEST_SUFFIXES", "STDIN", "is_manifest", "listing_frame", "read_manifest"]

STDIN = "-"
MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".json")

ROWS_AT_ONCE = 50_000  # Python objects alive while a manifest is read

Placed = tuple[int, Row]


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
        rows = _jsonl(stdin or sys.stdin.buffer, name, box_format)
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
            return _listing(name, "row", folder, root, _parquet(path, name, box_format))
        with path.open("rb") as file:
            if suffix == ".json":
                return _listing(name, "index", folder, root, coco_rows(file.read(), name))
            readers = {".jsonl": _jsonl, ".txt": _txt, ".csv": _csv, ".tsv": _tsv}
            return _listing(name, "line", folder, root, readers[suffix](file, name, box_format))
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
    frame = listing_frame((at, row, *_locate(row.uri, base, start)) for at, row in rows)
    if frame.is_empty():
        raise ScaError(
            f"{name}: no rows; expected one image per {'entry' if unit == 'index' else unit}"
        )
    return Listing(name, frame, unit)


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


def _lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # as spreadsheets on Windows begin a file
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ScaError(
                f"{name}, line {number}: not UTF-8 (byte {error.start + 1}); "
                "save the file with the encoding UTF-8"
            ) from None
        yield number, text


def _jsonl(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    for number, line in _lines(file, name):
        if line.isspace():
            continue
        place = f"{name}, line {number}"
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise ScaError(
                f"{name}: invalid JSON on line {number} column {error.colno}: {error.msg}; "
                "expected one JSON object per line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ScaError(f"{name}: invalid JSON on line {number}: {error}") from None
        if not isinstance(cells, dict):
            raise ScaError(f'{place}: not an object; expected a row such as {{"uri": "a.jpg"}}')
        yield number, parse_row(cells, place, box_format=box_format, text_cells=False)


def _txt(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    for number, line in _lines(file, name):
        uri = line.rstrip("\r\n")
        if uri and not uri.isspace():
            yield (
                number,
                parse_row(
                    {"uri": uri}, f"{name}, line {number}", box_format=box_format, text_cells=False
                ),
            )


def _csv(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    return _delimited(file, name, box_format, ",")


def _tsv(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    return _delimited(file, name, box_format, "\t")


def _delimited(
    file: Iterable[bytes], name: str, box_format: BoxFormat | None, delimiter: str
) -> Iterator[Placed]:
    csv.field_size_limit(2**31 - 1)  # a row of masks is longer than the 128 KiB it allows
    reader = csv.reader((line for _, line in _lines(file, name)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            at, start = start, reader.line_num + 1  # a quoted cell may span lines
            place = f"{name}, line {at}"
            if not cells:
                continue
            if header is None:
                header = _header(cells, place)
                continue
            if len(cells) != len(header):
                raise ScaError(
                    f"{place}: {len(cells)} cells under a header of {len(header)}; expected "
                    "one per column, and double quotes around a cell with a separator inside"
                )
            row = parse_row(
                dict(zip(header, cells, strict=True)), place, box_format=box_format, text_cells=True
            )
            yield at, row
    except csv.Error as error:
        raise ScaError(f"{name}, line {start}: not a row of a table ({error})") from None


def _header(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    again = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if again is not None:
        raise ScaError(
            f"{place}: the column {again!r} stands there twice; expected different names"
        )
    return names


def _parquet(path: Path, name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, cells in enumerate(rows, start=1):
                place = f"{name}, row {number}"
                yield number, parse_row(cells, place, box_format=box_format, text_cells=True)
    except pa.ArrowException as error:
        raise ScaError(f"{name}: not a readable Parquet file ({error})") from None
