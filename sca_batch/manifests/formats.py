"""Manifest files, one reader per format, each a stream of checked rows with their lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.errors import ScaError
from sca_batch.manifests.coco import coco_rows
from sca_batch.manifests.row import Row, parse_row
from sca_batch.manifests.values import BoxFormat

__all__ = ["MANIFEST_SUFFIXES", "MOST_PROBLEMS", "OnProblem", "jsonl_rows", "manifest_rows"]

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".json")

MOST_PROBLEMS = 100  # lines that may be wrong before a manifest is not read further

Numbered = tuple[int, Row]
OnProblem = Callable[[str], None]
Reader = Callable[[Iterable[bytes], str, BoxFormat | None], Iterator[Numbered]]


def manifest_rows(
    path: Path, box_format: BoxFormat | None = None, on_problem: OnProblem | None = None
) -> Iterator[Numbered]:
    """The rows of a manifest with their line, row or index from 1 (a COCO file's: from 0).

    Nothing but the current row is kept. With `on_problem` a wrong line of a `.jsonl` is told to
    it and passed over, up to `MOST_PROBLEMS`; in other formats the first problem is told and ends
    the reading.

    Raises:
        ScaError: for a suffix that is none, and at the first problem when nobody is told.
    """
    suffix = path.suffix.lower()
    readers: dict[str, Reader] = {
        ".txt": _txt,
        ".csv": partial(_delimited, delimiter=","),
        ".tsv": partial(_delimited, delimiter="\t"),
    }
    try:
        if suffix == ".parquet":
            yield from _parquet(path, box_format)
        elif suffix == ".json":
            yield from coco_rows(path)
        elif suffix in MANIFEST_SUFFIXES:
            with path.open("rb") as file:
                if suffix == ".jsonl":
                    yield from jsonl_rows(file, str(path), box_format, on_problem)
                else:
                    yield from readers[suffix](file, str(path), box_format)
        else:
            raise ScaError(
                f"{path}: {suffix or 'no suffix'} is not a manifest's; expected "
                f"{', '.join(MANIFEST_SUFFIXES)}"
            )
    except OSError as error:
        _tell(ScaError(f"{path}: {error.strerror or error}"), on_problem)
    except ScaError as error:
        _tell(error, on_problem)


def _tell(problem: ScaError, on_problem: OnProblem | None) -> None:
    if on_problem is None:
        raise problem from None
    on_problem(str(problem))


def jsonl_rows(
    file: Iterable[bytes],
    name: str,
    box_format: BoxFormat | None,
    on_problem: OnProblem | None = None,
) -> Iterator[Numbered]:
    """The rows of JSON lines; blank lines are passed over. `name` is what messages call them."""
    problems = 0
    for number, line in enumerate(file, start=1):
        try:
            row = _json_row(line, number, name, box_format)
        except ScaError as error:
            _tell(error, on_problem)
            problems += 1
            if problems == MOST_PROBLEMS:
                rest = f"{MOST_PROBLEMS} problems up to line {number:,}; the rest was not read"
                _tell(ScaError(f"{name}: {rest}"), on_problem)
                return
            continue
        if row is not None:
            yield number, row


def _json_row(line: bytes, number: int, name: str, box_format: BoxFormat | None) -> Row | None:
    text = _text(line, number, name)
    if not text or text.isspace():
        return None
    place = f"{name}, line {number}"
    try:
        cells = json.loads(text)
    except json.JSONDecodeError as error:
        raise ScaError(
            f"{name}: invalid JSON on line {number} column {error.colno}: {error.msg}; "
            "expected one JSON object per line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ScaError(f"{name}: invalid JSON on line {number}: {error}") from None
    if not isinstance(cells, dict):
        raise ScaError(f'{place}: not an object; expected a row such as {{"uri": "a.jpg"}}')
    return parse_row(cells, place, box_format=box_format, text_cells=False)


def _text(line: bytes, number: int, name: str) -> str:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # as spreadsheets on Windows begin a file
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScaError(
            f"{name}, line {number}: not UTF-8 (byte {error.start + 1}); "
            "save the file with the encoding UTF-8"
        ) from None


def _lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text."""
    return ((number, _text(line, number, name)) for number, line in enumerate(file, start=1))


def _txt(file: Iterable[bytes], name: str, box_format: BoxFormat | None) -> Iterator[Numbered]:
    for number, line in _lines(file, name):
        cells = {"uri": line.rstrip("\r\n")}
        if cells["uri"].strip():
            place = f"{name}, line {number}"
            yield number, parse_row(cells, place, box_format=box_format, text_cells=False)


def _delimited(
    file: Iterable[bytes], name: str, box_format: BoxFormat | None, delimiter: str
) -> Iterator[Numbered]:
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


def _parquet(path: Path, box_format: BoxFormat | None) -> Iterator[Numbered]:
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
