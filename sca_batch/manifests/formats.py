"""Manifest files, one reader per format, each a stream of checked rows with their lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Cells = Mapping[str, object]
OnProblem = Callable[[str], None]


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
    try:
        if suffix == ".json":
            yield from coco_rows(path)
        elif suffix == ".jsonl":
            with path.open("rb") as file:
                yield from jsonl_rows(file, str(path), box_format, on_problem)
        elif suffix in MANIFEST_SUFFIXES:
            readers = {".parquet": _parquet, ".txt": _txt}
            unit = "row" if suffix == ".parquet" else "line"
            for number, cells in readers.get(suffix, _delimited)(path):
                place = f"{path}, {unit} {number}"
                text_cells = suffix != ".txt"
                yield number, parse_row(cells, place, box_format=box_format, text_cells=text_cells)
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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, _text(line, number, str(path))


def _txt(path: Path) -> Iterator[tuple[int, Cells]]:
    for number, line in _lines(path):
        if line.strip():
            yield number, {"uri": line.rstrip("\r\n")}


def _delimited(path: Path) -> Iterator[tuple[int, Cells]]:
    csv.field_size_limit(2**31 - 1)  # a row of masks is longer than the 128 KiB it allows
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            at, start = start, reader.line_num + 1  # a quoted cell may span lines
            place = f"{path}, line {at}"
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
            yield at, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ScaError(f"{path}, line {start}: not a row of a table ({error})") from None


def _header(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    again = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if again is not None:
        raise ScaError(
            f"{place}: the column {again!r} stands there twice; expected different names"
        )
    return names


def _parquet(path: Path) -> Iterator[tuple[int, Cells]]:
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pa.ArrowException as error:
        raise ScaError(f"{path}: not a readable Parquet file ({error})") from None
