"""Manifests to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.errors import ScaError
from sca_batch.manifests.row import dump_json
from sca_batch.storage.atomic import writing

__all__ = ["write_manifest"]

TARGET_SUFFIXES = (".jsonl", ".parquet")
ROWS_AT_ONCE = 1024

# Parquet needs to know types before it sees a row.
COLUMNS = {
    "uri": pa.string(),
    "image_id": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
    "boxes_xyxy": pa.list_(pa.list_(pa.int64())),
    "references": pa.list_(pa.list_(pa.string())),
    "prompt_ids": pa.list_(pa.string()),
    "task": pa.string(),
    "split": pa.string(),
    "source": pa.string(),
    "split_by": pa.string(),
    "ref_protocol": pa.string(),
    "ref_splits": pa.list_(pa.string()),
}


def write_manifest(rows: Iterable[Mapping[str, object]], target: Path) -> None:
    """Writes rows as JSON lines, or as Parquet with `COLUMNS`' types; whole or not at all."""
    if target.suffix.lower() not in TARGET_SUFFIXES:
        raise ScaError(
            f"{target}: expected a name that ends in {' or '.join(TARGET_SUFFIXES)}: -o "
            f"{target.with_suffix('.jsonl')}"
        )
    if not target.parent.is_dir():
        raise ScaError(f"{target.parent}: no such folder; make it first: mkdir -p {target.parent}")
    try:
        with writing(target) as file:
            if target.suffix.lower() == ".parquet":
                _write_parquet(rows, file)
            else:
                for row in rows:
                    file.write(f"{dump_json(row)}\n".encode())
    except OSError as error:
        raise ScaError(f"{target}: cannot be written ({error.strerror or error})") from None


def _write_parquet(rows: Iterable[Mapping[str, object]], file: IO[bytes]) -> None:
    stream = iter(rows)
    first = next(stream)
    schema = pa.schema([(name, kind) for name, kind in COLUMNS.items() if name in first])
    stream = chain([first], stream)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(stream, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
