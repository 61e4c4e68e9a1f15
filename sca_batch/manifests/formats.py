"""Manifest files, one reader per format, each a stream of checked rows with their places."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.errors import ScaError
from sca_batch.manifests.coco import coco_rows
from sca_batch.manifests.row import Row, parse_row
from sca_batch.manifests.values import BoxFormat

__all__ = ["MANIFEST_SUFFIXES", "jsonl_rows", "manifest_rows"]

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".json")

Placed = tuple[int, Row]


def manifest_rows(
    path: Path, box_format: BoxFormat | None = None, *, or_stdin: bool = False
) -> Iterator[Placed]:
    """The rows of a manifest with their line, row or index from 1 (a COCO file's: from 0).

    `or_stdin` says whether the message about a wrong suffix tells of `-` too.

    Raises:
        ScaError: at once for a suffix that is none, and at the first thing that is wrong.
    """
    suffix = path.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        also = ", or - for JSON lines on standard input" if or_stdin else ""
        raise ScaError(
            f"{path}: {suffix or 'no suffix'} is not a manifest's; "
            f"expected {', '.join(MANIFEST_SUFFIXES)}{also}"
        )
    return _rows(path, suffix, box_format)


def _rows(path: Path, suffix: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    readers = {".jsonl": jsonl_rows, ".txt": _txt, ".csv": _csv, ".tsv": _tsv}
    try:
        if suffix == ".parquet":
            yield from _parquet(path, box_format)
        elif suffix == ".json":
            yield from coco_rows(path)
        else:
            with path.open("rb") as file:
                yield from readers[suffix](file, str(path), box_format)
    except OSError as error:
        raise ScaError(f"{path}: {error.strerror or error}") from None


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


def jsonl_rows(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """The rows of JSON lines; blank lines are passed over. `name` is what messages call them."""
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


def _parquet(path: Path, box_format: BoxFormat | None) -> Iterator[Placed]:
    name = str(path)
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, cells in enumerate(rows, start=1):
                place = f"{name}, row {number}"
                yield number, parse_row(cells, place, box_format=box_format, text_cells=True)
    except pa.ArrowException as error:
        raise ScaError(f"{name}: not a readable Parquet file ({error})") from None
