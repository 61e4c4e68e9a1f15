"""A digest of a table's values that does not depend on how a file happens to store them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["RowsDigest", "digest_rows"]

ROWS_AT_ONCE = 1024  # part of the definition: another number gives other digests


class RowsDigest:
    """sha256 over columns' names and values, nulls included, of a table that comes in pieces.

    Every 1,024 rows each column adds which of its values are present, then the values:
    little-endian numbers, the lengths and bytes of text, the lengths and items of lists, the
    fields of structs. Page sizes, compression, dictionaries and pieces leave no trace.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._digest = hashlib.sha256("\0".join(names).encode())
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Goes on with the rows of `table`, which has the columns that were named."""
        self._waiting.append(table)
        if sum(piece.num_rows for piece in self._waiting) < ROWS_AT_ONCE:
            return
        rows = pa.concat_tables(self._waiting)
        whole = rows.num_rows - rows.num_rows % ROWS_AT_ONCE
        for start in range(0, whole, ROWS_AT_ONCE):
            self._add_rows(rows.slice(start, ROWS_AT_ONCE))
        self._waiting = [rows.slice(whole)]

    def hexdigest(self) -> str:
        """The digest of all rows; nothing can be added after it was asked for."""
        rows = pa.concat_tables(self._waiting) if self._waiting else None
        if rows is not None and rows.num_rows:
            self._add_rows(rows)
        self._waiting = []
        return self._digest.hexdigest()

    def _add_rows(self, rows: pa.Table) -> None:
        for column in rows.columns:
            chunks = column.combine_chunks()
            array = chunks if isinstance(chunks, pa.Array) else pa.concat_arrays(chunks.chunks)
            self._add(array)

    def _add(self, array: pa.Array) -> None:
        present = array.is_valid().to_numpy(zero_copy_only=False)
        self._digest.update(len(present).to_bytes(8, "little"))
        self._digest.update(np.packbits(present).tobytes())
        kind = array.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(array).fill_null(0).cast(pa.int64())
            self._digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            self._add(pc.list_flatten(array))
        elif pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                self._add(pc.struct_field(array, [i]))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            texts = array.drop_null().cast(pa.large_string())
            lengths = pc.binary_length(texts).cast(pa.int64())
            self._digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            self._digest.update(_text_bytes(texts))
        else:
            absent = False if pa.types.is_boolean(kind) else 0
            self._digest.update(array.fill_null(absent).to_numpy(zero_copy_only=False).tobytes())


def digest_rows(table: pa.Table) -> str:
    """The `RowsDigest` of one table, in hexadecimal."""
    digest = RowsDigest(table.column_names)
    digest.add(table)
    return digest.hexdigest()


def _text_bytes(texts: pa.Array) -> memoryview:
    _, offsets, characters = texts.buffers()
    if not len(texts) or characters is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64)
    start, stop = ends[texts.offset], ends[texts.offset + len(texts)]
    return memoryview(characters)[start:stop]
