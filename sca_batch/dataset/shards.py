"""Shard files and the folder they stand in: written whole, trusted only after a look inside."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NotRequired, TypedDict, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.dataset.schema import SCHEMA, RecordRow, record_to_row, row_to_record, short
from sca_batch.errors import ScaError
from sca_batch.records import ImageRecord, Json, JsonObject
from sca_batch.storage.atomic import writing
from sca_batch.storage.digests import digest_rows
from sca_batch.storage.stores import AnyPath, StorePath, each

__all__ = [
    "CONTENT_VERSION", "RUN_FILE", "DamagedShardError", "RunFile", "ShardMark", "checked_shards",
    "dataset_shards", "differing_keys", "failed_rows", "find_row", "fingerprint_digest",
    "iter_file", "iter_records", "iter_rows", "open_shard", "read_run", "read_shard",
    "read_shard_mark", "shard_path", "write_run", "write_shard",
]  # fmt: skip

# Raised when the same inputs and settings give other records than the last version did.
CONTENT_VERSION = 1
RUN_FILE = "run.json"

SHARD_NAME = re.compile(r"shard-(\d{6,})\.parquet")
ROWS_AT_ONCE = 64  # rows that a reader holds in memory
# A region's fields that are float32.
Number = Literal["caption_logprob", "caption_score", "predicted_iou", "stability_score"]
NUMBERS: tuple[Number, ...] = get_args(Number)


class RunSettings(TypedDict, total=False):
    """Facts of a run beside what its records depend on; more stands there."""

    model: str
    sources: list[str]
    options: JsonObject


class RunFile(TypedDict):
    """OUT/run.json: what records depend on, and what is good to know."""

    fingerprint: JsonObject
    settings: NotRequired[RunSettings]


class DamagedShardError(ScaError):
    """A file that is no shard, or is not what was written. It is made again."""


@dataclass(frozen=True, slots=True)
class ShardMark:
    """The metadata of a shard: its rows in the plan and the run that made it.

    `first_row` and `last_row` are rows of the plan, from 0, both included. `versions` is JSON:
    which version of its source each row was made from, by its row in the shard, where not 0.
    """

    index: int
    first_row: int
    last_row: int
    fingerprint: str
    versions: str = "{}"


def shard_path(out: AnyPath, index: int) -> AnyPath:
    """OUT/shard-000000.parquet for shard 0."""
    return out / f"shard-{index:06d}.parquet"


@contextmanager
def open_shard(path: AnyPath, *, whole: bool) -> Iterator[pq.ParquetFile]:
    """A shard as Parquet. Of an object all bytes are asked for at once, or only those it takes.

    Raises:
        DamagedShardError: when it cannot be read as Parquet, inside the block too.
        StoreError: when the store does not answer.
    """
    try:
        source: Path | IO[bytes] | StorePath = path
        if isinstance(path, StorePath):
            source = io.BytesIO(path.read_bytes()) if whole else path.read_parts()
        with pq.ParquetFile(source) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(f"{path}: not a readable Parquet file ({error})") from None


def write_shard(records: Iterable[ImageRecord], path: AnyPath, mark: ShardMark) -> None:
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
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
    with writing(path, content.tell()) as file:
        file.write(content.getbuffer())


def read_shard(path: AnyPath) -> list[ImageRecord]:
    """Every record of one shard."""
    return [row_to_record(row) for row in iter_file(path)]


def read_shard_mark(path: AnyPath, *, check_rows: bool = True) -> ShardMark:
    """The mark of a shard, after comparing its rows with the digest it carries.

    Raises:
        DamagedShardError: for a file that is damaged, incomplete or no shard.
    """
    with open_shard(path, whole=check_rows) as file:
        metadata = file.schema_arrow.metadata or {}
        num_rows = file.metadata.num_rows
        table = file.read() if check_rows else None
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
        raise DamagedShardError(f"{path}: not a shard; its metadata lack {error}") from None
    if version != CONTENT_VERSION:
        raise DamagedShardError(
            f"{path}: content version {version}; this program writes {CONTENT_VERSION}"
        )
    if mark.last_row - mark.first_row + 1 != num_rows:
        raise DamagedShardError(
            f"{path}: {num_rows:,} rows; expected rows {mark.first_row:,} to {mark.last_row:,}"
        )
    if table is not None and digest_rows(table) != rows_digest:
        raise DamagedShardError(f"{path}: its rows are not those that were written")
    return mark


def checked_shards(out: AnyPath, fingerprint: str) -> Iterator[tuple[AnyPath, ShardMark | str]]:
    """Every shard in OUT: its mark when it belongs to this run and is intact, else the reason.

    Names alone prove nothing. Of objects only the end is read, which says what they are: a store
    compares what it keeps with what was sent.
    """

    def look(path: AnyPath) -> tuple[AnyPath, ShardMark | str]:
        try:
            mark = read_shard_mark(path, check_rows=not isinstance(path, StorePath))
        except DamagedShardError as error:
            return path, str(error)
        if mark.fingerprint != fingerprint:
            return path, f"{path}: made by a run with other settings"
        if shard_path(out, mark.index) != path:
            return path, f"{path}: holds shard {mark.index}, its name says otherwise"
        return path, mark

    yield from each(out, look, dataset_shards(out))


def failed_rows(path: AnyPath) -> list[tuple[int, str]]:
    """Of one shard's failed images: the row of the plan, and the error code."""
    with open_shard(path, whole=False) as file:
        first = int((file.schema_arrow.metadata or {})[b"sca.first_row"])
        table = file.read(["status", "error_code"]).to_pydict()
    statuses, codes = table["status"], table["error_code"]
    return [(first + i, codes[i]) for i in range(len(codes)) if statuses[i] == "failed"]


def dataset_shards(dataset: AnyPath) -> Iterator[AnyPath]:
    """The dataset's shard files in their order."""
    # Numbers and not paths are held: a large dataset has hundreds of thousands of shards.
    matches = (SHARD_NAME.fullmatch(path.name) for path in dataset.glob("shard-*.parquet"))
    for index in sorted(int(match[1]) for match in matches if match):
        yield shard_path(dataset, index)


def iter_rows(dataset: AnyPath, columns: list[str] | None = None) -> Iterator[RecordRow]:
    """Every row of a dataset, shard by shard, with all columns or only some."""
    for path in dataset_shards(dataset):
        yield from iter_file(path, columns)


def iter_records(dataset: AnyPath) -> Iterator[ImageRecord]:
    """Every record of a dataset, shard by shard."""
    for row in iter_rows(dataset):
        yield row_to_record(row)


def find_row(dataset: AnyPath, image: str) -> RecordRow:
    """The row whose key is `image`; where there is none, whose file name or image id it is.

    Raises:
        ScaError: when no row fits, or several do.
    """
    read_run(dataset)
    found: dict[str, list[tuple[AnyPath, int, str]]] = {"key": [], "file_name": [], "image_id": []}
    some_key = None
    for path in dataset_shards(dataset):
        for position, row in enumerate(iter_file(path, list(found))):
            some_key = some_key or row["key"]
            names = (row["key"], row["file_name"], str(row["image_id"]))
            for rows, name in zip(found.values(), names, strict=True):
                if name == image:
                    rows.append((path, position, row["key"]))
    rows = next((rows for rows in found.values() if rows), [])
    if not rows:
        example = f", such as {some_key}" if some_key is not None else ", but it has no images yet"
        raise ScaError(f"{dataset}: no image {image}; expected a key, file name or id{example}")
    if len(rows) > 1:
        keys = ", ".join(key for *_, key in rows[:5])
        raise ScaError(f"{dataset}: {len(rows):,} images are {image}; name one by its key: {keys}")
    path, position, _ = rows[0]
    return next(islice(iter_file(path), position, None))


def iter_file(path: AnyPath, columns: list[str] | None = None) -> Iterator[RecordRow]:
    """Every row of one shard."""
    with open_shard(path, whole=columns is None) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                yield _shortened(row)


def _shortened(row: RecordRow) -> RecordRow:
    """The row with its float32 numbers as `record_to_row` gave them."""
    for region in row.get("regions", ()):
        for name in NUMBERS:
            value = region[name]
            if value is not None:
                region[name] = short(value)
        region["bbox"] = [short(value) for value in region["bbox"]]
        if region["crop_box"] is not None:
            region["crop_box"] = [short(value) for value in region["crop_box"]]
        for caption in region["captions"]:
            caption["logprob"] = short(caption["logprob"])
    return row


def write_run(out: AnyPath, run: Mapping[str, object]) -> AnyPath:
    """Writes OUT/run.json, `{"fingerprint": {...}, "settings": {...}, ...}`."""
    path = out / RUN_FILE
    text = json.dumps(run, indent=2, ensure_ascii=False, allow_nan=False)
    with writing(path) as file:
        file.write(f"{text}\n".encode())
    return path


def read_run(out: AnyPath) -> RunFile:
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
    return cast(RunFile, run)


def fingerprint_digest(fingerprint: Mapping[str, Json]) -> str:
    """sha256 of the settings that change content; shards carry it."""
    return hashlib.sha256(_canonical(fingerprint).encode()).hexdigest()


def differing_keys(
    old: Mapping[str, Json], new: Mapping[str, Json]
) -> dict[str, tuple[Json, Json]]:
    """Dotted keys whose values differ, with both values; None stands for a missing one."""
    before, after = _flat(json.loads(_canonical(old))), _flat(json.loads(_canonical(new)))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _canonical(fingerprint: Mapping[str, Json]) -> str:
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))


def _flat(tree: Mapping[str, Json], prefix: str = "") -> JsonObject:
    leaves: JsonObject = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
