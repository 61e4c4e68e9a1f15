"""A manifest row by row, in bounded memory, and past problems if somebody collects them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.manifests.formats import jsonl_rows, manifest_rows
from sca_batch.manifests.read import locate
from sca_batch.manifests.row import Row
from sca_batch.manifests.values import BoxFormat

__all__ = ["MOST_PROBLEMS", "iter_manifest", "row_uri"]

MOST_PROBLEMS = 100  # lines that may be wrong before a manifest is not read further

OnProblem = Callable[[str], None]


def iter_manifest(
    path: Path, *, box_format: BoxFormat | None = None, on_problem: OnProblem | None = None
) -> Iterator[tuple[int, Row]]:
    """The rows of a manifest with their line, row or index; nothing but the current one is kept.

    With `on_problem` a wrong line of a `.jsonl` is told to it and passed over, up to
    `MOST_PROBLEMS`; in other formats the first problem ends the reading.

    Raises:
        ScaError: at the first problem when there is no `on_problem`.
    """
    try:
        yield from _rows(path, box_format, on_problem)
    except ScaError as error:
        if on_problem is None:
            raise
        on_problem(str(error))


def row_uri(uri: str, manifest: Path) -> str:
    """Where a row's image is: an absolute path or a URL."""
    folder = os.path.abspath(manifest.parent)
    return locate(uri, folder, folder)[0]


def _rows(
    path: Path, box_format: BoxFormat | None, on_problem: OnProblem | None
) -> Iterator[tuple[int, Row]]:
    if path.suffix.lower() != ".jsonl" or on_problem is None:
        yield from manifest_rows(path, box_format)
        return
    try:
        with path.open("rb") as file:
            yield from _past_problems(file, str(path), box_format, on_problem)
    except OSError as error:
        raise ScaError(f"{path}: {error.strerror or error}") from None


def _past_problems(
    file: Iterator[bytes], name: str, box_format: BoxFormat | None, on_problem: OnProblem
) -> Iterator[tuple[int, Row]]:
    read = 0

    def counted() -> Iterator[bytes]:
        nonlocal read
        for line in file:
            read += 1
            yield line

    lines = counted()
    for _ in range(MOST_PROBLEMS):
        try:
            # Blank lines are passed over and counted: the reader goes on with the right numbers.
            yield from jsonl_rows(chain(repeat(b"\n", read), lines), name, box_format)
            return
        except ScaError as error:
            on_problem(str(error))
    on_problem(f"{name}: {MOST_PROBLEMS} problems up to line {read:,}; the rest was not read")
