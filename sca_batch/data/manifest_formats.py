"""One reader per format of a manifest, each a stream of checked rows with their places."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.data.cells import BoxFormat
from sca_batch.data.columns import Row, parse_row
from sca_batch.errors import ScaError
from sca_batch.records import redacted

__all__ = [
    "MANIFEST_SUFFIXES",
    "TEXT_READERS",
    "Placed",
    "jsonl_rows",
    "locate_image",
    "parquet_rows",
]

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".json")

Placed = tuple[int, Row]


def locate_image(given: str, folder: str, root: str) -> tuple[str, str]:
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


def jsonl_rows(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """One object per line; blank lines are passed over."""
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


def txt_rows(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """One path or URL per line."""
    for number, line in _lines(file, name):
        uri = line.rstrip("\r\n")
        if uri and not uri.isspace():
            yield (
                number,
                parse_row(
                    {"uri": uri}, f"{name}, line {number}", box_format=box_format, text_cells=False
                ),
            )


def csv_rows(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """A table with a header, commas between cells."""
    return _delimited(file, name, box_format, ",")


def tsv_rows(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """A table with a header, tabs between cells."""
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


def parquet_rows(path: Path, name: str, box_format: BoxFormat | None) -> Iterator[Placed]:
    """The rows of a Parquet file, a few at a time."""
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, cells in enumerate(rows, start=1):
                place = f"{name}, row {number}"
                yield number, parse_row(cells, place, box_format=box_format, text_cells=True)
    except pa.ArrowException as error:
        raise ScaError(f"{name}: not a readable Parquet file ({error})") from None


TEXT_READERS = {".jsonl": jsonl_rows, ".txt": txt_rows, ".csv": csv_rows, ".tsv": tsv_rows}
