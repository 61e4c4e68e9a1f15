"""Rows on disk while a plan is made, so that its size is not bounded by memory."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import OutputError
from sca_batch.storage.atomic import NO_ROOM

__all__ = ["Scratch", "Spool", "rebatched"]


MOST_BYTES = 8 << 20  # of a batch of rows in memory; masks make rows long


class Scratch:
    """Bytes that are appended, and read where they are, in a temporary file without a name.

    The file stands below `TMPDIR` and is gone with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.size = 0

    def append(self, content: bytes | bytearray | memoryview) -> int:
        """The offset at which the bytes were written, which is the end before.

        Raises:
            OutputError: when there is no room for temporary files.
        """
        offset = self.size
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutputError(
                f"{tempfile.gettempdir()}: no space left for temporary files, after "
                f"{offset >> 20:,} MiB of the plan's rows; free some, or set TMPDIR to a folder "
                "with more"
            ) from None
        self.size += len(content)
        return offset

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)


class Spool:
    """Rows that were added once and are read in batches any number of times, from a `Scratch`."""

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self.schema = dict(schema)
        self._scratch = Scratch()
        self._batches: list[tuple[int, int]] = []  # of each batch: offset and length in bytes
        self._starts = [0]  # the first row of each batch, and the number of rows

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame], schema: Mapping[str, pl.DataType]) -> Spool:
        """A spool of the rows of all frames."""
        spool = cls(schema)
        for frame in frames:
            spool.add(frame)
        return spool

    def __len__(self) -> int:
        return self._starts[-1]

    def add(self, frame: pl.DataFrame) -> None:
        """Appends rows; they become a batch, or several where they are long.

        Raises:
            OutputError: when there is no room for temporary files.
        """
        if frame.is_empty():
            return
        for piece in rebatched([frame.select(list(self.schema))], frame.height):
            stream = io.BytesIO()
            piece.rechunk().write_ipc_stream(stream, compression="lz4")
            content = stream.getbuffer()
            self._batches.append((self._scratch.append(content), len(content)))
            self._starts.append(len(self) + piece.height)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows, all columns or some, in batches as they were added."""
        for batch in range(len(self._batches)):
            yield self._batch(batch, columns)

    def take(self, rows: npt.NDArray[np.int64]) -> pl.DataFrame:
        """The rows with these numbers, in rising order, a number being said once or more often."""
        rows = np.unique(rows)
        batch_of = np.searchsorted(self._starts, rows, side="right") - 1
        found = [pl.DataFrame(schema=self.schema)]
        for batch in np.unique(batch_of).tolist():
            inside = rows[batch_of == batch] - self._starts[batch]
            found.append(self._batch(batch)[inside])
        return pl.concat(found)

    def frame(self) -> pl.DataFrame:
        """Every row, in memory."""
        return pl.concat([pl.DataFrame(schema=self.schema), *self.batches()])

    def _batch(self, batch: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        content = self._scratch.read(*self._batches[batch])
        return pl.read_ipc_stream(content, columns=list(columns or self.schema))


def rebatched(
    frames: Iterable[pl.DataFrame], rows: int, max_bytes: int = MOST_BYTES
) -> Iterator[pl.DataFrame]:
    """The same rows in frames of `rows`, or fewer where those would take more than `max_bytes`."""
    waiting: list[pl.DataFrame] = []
    height = size = 0
    for frame in frames:
        for piece in frame.iter_slices(min(rows, _rows_within(frame, max_bytes))):
            if height + piece.height > rows or size + piece.estimated_size() > max_bytes:
                if waiting:
                    yield pl.concat(waiting)
                waiting, height, size = [], 0, 0
            waiting.append(piece)
            height += piece.height
            size += int(piece.estimated_size())
    if waiting:
        yield pl.concat(waiting)


def _rows_within(frame: pl.DataFrame, max_bytes: int) -> int:
    each = frame.estimated_size() / max(1, frame.height)
    return max(1, int(max_bytes / max(1.0, each)))
