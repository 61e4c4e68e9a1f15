"""Shard files and the folder they stand in: written whole, trusted only after a look inside."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.data.atomic import writing
from sca_batch.data.digests import digest_rows
from sca_batch.data.rows import SCHEMA, record_to_row, row_to_record, short
from sca_batch.errors import ScaError
from sca_batch.records import ImageRecord

__all__ = [
    "CONTENT_VERSION",
    "RUN_FILE",
    "ShardMark",
    "checked_shards",
    "dataset_shards",
    "differing_keys",
    "find_row",
    "fingerprint_digest",
    "iter_file",
    "iter_records",
    "iter_rows",
    "read_run",
    "read_shard",
    "read_shard_mark",
    "shard_path",
    "write_run",
    "write_shard",
]

# Raised when the same inputs and settings give other records than the last version did.
CONTENT_VERSION = 1
RUN_FILE = "run.json"

SHARD_NAME = re.compile(r"shard-(\d{6,})\.parquet")
ROWS_AT_ONCE = 64  # rows that a reader holds in memory


@dataclass(frozen=True, slots=True)
class ShardMark:
    """What a shard says about itself: its place in the plan and the run that made it.

    `first_row` and `last_row` are rows of the plan, from 0, both included. `versions` is JSON:
    which version of its source each row was made from, by its place in the shard, where not 0.
    """

    index: int
    first_row: int
    last_row: int
    fingerprint: str
    versions: str = "{}"


def shard_path(out: Path, index: int) -> Path:
    """OUT/shard-000000.parquet for shard 0."""
    return out / f"shard-{index:06d}.parquet"


def write_shard(records: Iterable[ImageRecord], path: Path, mark: ShardMark) -> None:
    """Writes one shard so that its final name never exists half-written."""
    table = pa.Table.from_pylist([record_to_row(record) for record in records], schema=SCHEMA)
    metadata = {
        **SCHEMA.metadata,
        b"sca.shard_index": str(mark.index),
        b"sca.first_row": str(mark.first_row),
        b"sca.last_row": str(mark.last_row),
        b"sca.fingerprint": mark.fingerprint,
        b"sca.rows_digest": digest_rows(table),
        b"sca.content_version": str(CONTENT_VERSION),
        b"sca.versions": mark.versions,
    }
    with writing(path) as file:
        pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")


def read_shard(path: Path) -> list[ImageRecord]:
    """Every record of one shard."""
    return [row_to_record(row) for row in iter_file(path)]


def read_shard_mark(path: Path, *, check_rows: bool = True) -> ShardMark:
    """What the shard says about itself, after comparing its rows with the digest it carries.

    Raises:
        ScaError: for a file that is damaged, incomplete or no shard.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            num_rows = file.metadata.num_rows
            table = file.read() if check_rows else None
    except (pa.ArrowException, OSError) as error:
        raise ScaError(f"{path}: not a readable Parquet file ({error})") from None
    try:
        mark = ShardMark(
            index=int(metadata[b"sca.shard_index"]),
            first_row=int(metadata[b"sca.first_row"]),
            last_row=int(metadata[b"sca.last_row"]),
            fingerprint=metadata[b"sca.fingerprint"].decode(),
            versions=metadata[b"sca.versions"].decode(),
        )
        rows_digest = metadata[b"sca.rows_digest"].decode()
        version = int(metadata[b"sca.content_version"])
    except (KeyError, ValueError) as error:
        raise ScaError(f"{path}: not a shard; its metadata lack {error}") from None
    if version != CONTENT_VERSION:
        raise ScaError(f"{path}: content version {version}; this program writes {CONTENT_VERSION}")
    if mark.last_row - mark.first_row + 1 != num_rows:
        raise ScaError(
            f"{path}: {num_rows:,} rows; expected rows {mark.first_row:,} to {mark.last_row:,}"
        )
    if table is not None and digest_rows(table) != rows_digest:
        raise ScaError(f"{path}: its rows are not those that were written")
    return mark


def checked_shards(out: Path, fingerprint: str) -> Iterator[tuple[Path, ShardMark | str]]:
    """Every shard in OUT: its mark when it belongs to this run and is intact, else the reason.

    Names alone prove nothing.
    """
    for path in dataset_shards(out):
        try:
            mark = read_shard_mark(path)
        except ScaError as error:
            yield path, str(error)
            continue
        if mark.fingerprint != fingerprint:
            yield path, f"{path}: made by a run with other settings"
        elif shard_path(out, mark.index) != path:
            yield path, f"{path}: holds shard {mark.index}, its name says otherwise"
        else:
            yield path, mark


def dataset_shards(dataset: Path) -> Iterator[Path]:
    """The dataset's shard files in their order."""
    # Numbers and not paths are held: a large dataset has hundreds of thousands of shards.
    matches = (SHARD_NAME.fullmatch(path.name) for path in dataset.glob("shard-*.parquet"))
    for index in sorted(int(match[1]) for match in matches if match):
        yield shard_path(dataset, index)


def iter_rows(dataset: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row of a dataset, shard by shard, with all columns or only some."""
    for path in dataset_shards(dataset):
        yield from iter_file(path, columns)


def iter_records(dataset: Path) -> Iterator[ImageRecord]:
    """Every record of a dataset, shard by shard."""
    for row in iter_rows(dataset):
        yield row_to_record(row)


def find_row(dataset: Path, image: str) -> dict[str, Any]:
    """The row whose key is `image`; where there is none, whose file name or image id it is.

    Raises:
        ScaError: when no row fits, or several do.
    """
    read_run(dataset)
    found: dict[str, list[tuple[Path, int, str]]] = {"key": [], "file_name": [], "image_id": []}
    some_key = None
    for path in dataset_shards(dataset):
        for position, row in enumerate(iter_file(path, list(found))):
            some_key = some_key or row["key"]
            for column, places in found.items():
                if str(row[column]) == image:
                    places.append((path, position, row["key"]))
    places = next((places for places in found.values() if places), [])
    if not places:
        example = f", such as {some_key}" if some_key is not None else ", but it has no images yet"
        raise ScaError(f"{dataset}: no image {image}; expected a key, file name or id{example}")
    if len(places) > 1:
        keys = ", ".join(key for *_, key in places[:5])
        raise ScaError(
            f"{dataset}: {len(places):,} images are {image}; name one by its key: {keys}"
        )
    path, position, _ = places[0]
    return next(islice(iter_file(path), position, None))


def iter_file(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row of one shard."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    yield _shortened(row)
    except (pa.ArrowException, OSError) as error:
        raise ScaError(f"{path}: not a readable shard ({error})") from None


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its float32 numbers as `record_to_row` gave them."""
    for region in row.get("regions", ()):
        for name in ("caption_logprob", "caption_score", "predicted_iou", "stability_score"):
            if region[name] is not None:
                region[name] = short(region[name])
        for name in ("bbox", "crop_box"):
            if region[name] is not None:
                region[name] = [short(value) for value in region[name]]
        for caption in region["captions"]:
            caption["logprob"] = short(caption["logprob"])
    return row


def write_run(out: Path, run: Mapping[str, Any]) -> Path:
    """Writes OUT/run.json, `{"fingerprint": {...}, "settings": {...}, ...}`."""
    path = out / RUN_FILE
    text = json.dumps(run, indent=2, ensure_ascii=False, allow_nan=False)
    with writing(path) as file:
        file.write(f"{text}\n".encode())
    return path


def read_run(out: Path) -> dict[str, Any]:
    """The content of OUT/run.json.

    Raises:
        ScaError: when the folder is not a dataset.
    """
    path = out / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ScaError(f"{out}: not a dataset; it has no {RUN_FILE}") from None
    except (OSError, ValueError) as error:
        raise ScaError(f"{path}: not readable ({error})") from None
    if not isinstance(run, dict) or not isinstance(run.get("fingerprint"), dict):
        raise ScaError(f"{path}: has no fingerprint; expected the file that sca caption writes")
    return run


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """sha256 of the settings that change content; shards carry it."""
    return hashlib.sha256(_canonical(fingerprint).encode()).hexdigest()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; None stands for a missing one."""
    before, after = _flat(json.loads(_canonical(old))), _flat(json.loads(_canonical(new)))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _canonical(fingerprint: Mapping[str, Any]) -> str:
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
