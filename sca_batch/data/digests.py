"""A digest of a table's values that does not depend on how a file happens to store them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["digest_rows"]

ROWS_AT_ONCE = 65_536  # part of the definition: another number gives other digests


def digest_rows(table: pa.Table) -> str:
    """sha256 over the columns' names and values, nulls included, in hexadecimal.

    Every 65,536 rows each column adds which of its values are present, then the values:
    little-endian numbers, the lengths and bytes of text, the lengths and items of lists, the
    fields of structs. Page sizes, compression and dictionaries leave no trace.
    """
    digest = hashlib.sha256("\0".join(table.column_names).encode())
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        rows = table.slice(start, ROWS_AT_ONCE)
        for column in rows.columns:
            chunks = column.combine_chunks()
            _add(
                digest, chunks if isinstance(chunks, pa.Array) else pa.concat_arrays(chunks.chunks)
            )
    return digest.hexdigest()


def _add(digest: Any, array: pa.Array) -> None:
    present = array.is_valid().to_numpy(zero_copy_only=False)
    digest.update(len(present).to_bytes(8, "little"))
    digest.update(np.packbits(present).tobytes())
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(array).fill_null(0).cast(pa.int64())
        digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
        _add(digest, pc.list_flatten(array))
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _add(digest, pc.struct_field(array, [i]))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = array.drop_null().cast(pa.large_string())
        lengths = pc.binary_length(texts).cast(pa.int64())
        digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
        digest.update(_text_bytes(texts))
    else:
        absent = False if pa.types.is_boolean(kind) else 0
        digest.update(array.fill_null(absent).to_numpy(zero_copy_only=False).tobytes())


def _text_bytes(texts: pa.Array) -> memoryview:
    _, offsets, characters = texts.buffers()
    if not len(texts) or characters is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64)
    start, stop = ends[texts.offset], ends[texts.offset + len(texts)]
    return memoryview(characters)[start:stop]
