"""The plan of a run on disk: cut into shards, versioned row by row, read one shard at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.errors import ScaError
from sca_batch.plan.plan import PLAN_FILE, PLAN_SCHEMA, Plan, PlanRow, row_ref
from sca_batch.records import ImageRef
from sca_batch.storage.atomic import writing
from sca_batch.storage.digests import RowsDigest
from sca_batch.storage.spool import rebatched
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = [
    "RUN_PLAN_SCHEMA", "RunPlan", "gone_ids", "open_run_plan", "run_plan_frames", "stat_columns",
    "write_run_plan",
]  # fmt: skip

# What a run adds to the rows of a plan. A row's version rises when it is to be done again; `gone`
# marks one whose source has vanished; size and time are the file's when it was listed, size and
# etag the object's.
RUN_PLAN_SCHEMA: dict[str, pl.DataType] = {
    **PLAN_SCHEMA,
    "shard": pl.Int32(),
    "version": pl.Int32(),
    "gone": pl.Boolean(),
    "size": pl.Int64(),
    "mtime_ns": pl.Int64(),
    "etag": pl.String(),
}
ROWS_AT_ONCE = 4096  # of a row group at most: what is read to find the rows of one shard


class RunPlan:
    """OUT/plan/manifest.parquet.

    Only the shards' bounds are held, and of rows those that have a version or have vanished.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        # Rows are looked up shard by shard: not a request each.
        source = path.download() if isinstance(path, StorePath) else path
        try:
            self._file = pq.ParquetFile(source)
            metadata = self._file.metadata.metadata or {}
            self._look_through()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self._unreadable(error) from None
        if not metadata.keys() >= {b"sca.plan_digest", b"sca.rows_digest"}:
            raise ScaError(f"{path}: not a plan of this program; start again with --overwrite")
        self.digest = metadata[b"sca.plan_digest"].decode()
        self.rows_digest = metadata[b"sca.rows_digest"].decode()
        self._cached: tuple[int, list[PlanRow]] = (-1, [])

    def _unreadable(self, error: Exception) -> ScaError:
        return ScaError(f"{self.path}: not a readable plan ({error}); start again with --overwrite")

    def _look_through(self) -> None:
        groups = range(self._file.num_row_groups)
        heights = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._groups: npt.NDArray[np.int64] = np.cumsum([0, *heights], dtype=np.int64)
        starts, rows, before = [np.zeros(0, np.int64)], 0, -1
        versioned, gone = [np.zeros((2, 0), np.int64)], [np.zeros(0, np.int64)]
        for batch in self._file.iter_batches(
            ROWS_AT_ONCE, columns=["shard", "version", "gone"], use_threads=False
        ):
            shards = batch["shard"].to_numpy()
            versions = batch["version"].to_numpy()
            starts.append(np.flatnonzero(np.diff(shards, prepend=before)) + rows)
            raised = np.flatnonzero(versions)
            versioned.append(np.stack([raised + rows, versions[raised]]))
            gone.append(np.flatnonzero(batch["gone"].to_numpy(zero_copy_only=False)) + rows)
            rows, before = rows + len(shards), int(shards[-1])
        self._starts: npt.NDArray[np.int64] = np.concatenate([*starts, [rows]]).astype(np.int64)
        self._versioned: npt.NDArray[np.int64] = np.concatenate(versioned, axis=1)
        self.gone_rows: npt.NDArray[np.int64] = np.concatenate(gone)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shards(self) -> int:
        return len(self._starts) - 1

    def first_row(self, index: int) -> int:
        return int(self._starts[index])

    def rows_of(self, index: int) -> int:
        return int(self._starts[index + 1] - self._starts[index])

    def shards_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The shard in which each row stands."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def is_gone(self, row: int) -> bool:
        """True for a row whose source has vanished."""
        at = np.searchsorted(self.gone_rows, row)
        return bool(at < len(self.gone_rows) and self.gone_rows[at] == row)

    def versions(self, index: int, rows: int | None = None) -> str:
        """The versions of a shard's first `rows` rows that are not 0, as shards carry them."""
        first = self.first_row(index)
        last = first + (self.rows_of(index) if rows is None else rows)
        low, high = np.searchsorted(self._versioned[0], [first, last])
        pairs = self._versioned[:, low:high].T.tolist()
        return json.dumps({str(row - first): version for row, version in pairs})

    def refs(self, index: int) -> list[ImageRef]:
        """The images of one shard."""
        self._refuse_older()
        first, last = self.first_row(index), self.first_row(index) + self.rows_of(index)
        rows: list[PlanRow] = []
        while first < last:
            group = int(np.searchsorted(self._groups, first, side="right")) - 1
            start, end = self._groups[group : group + 2].tolist()
            rows += self._group(group)[first - start : last - start]
            first = end
        return [row_ref(row) for row in rows]

    def _group(self, group: int) -> list[PlanRow]:
        if self._cached[0] != group:
            table = self._file.read_row_group(group, list(PLAN_SCHEMA), use_threads=False)
            self._cached = (group, table.to_pylist())
        return self._cached[1]

    def batches(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        """Every row, with all of `RUN_PLAN_SCHEMA`'s columns or some, in batches."""
        wanted = columns or list(RUN_PLAN_SCHEMA)
        for table in self._tables(wanted):
            yield cast(pl.DataFrame, pl.from_arrow(table)).select(wanted)

    def _tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        try:
            for group in range(self._file.num_row_groups):
                yield self._file.read_row_group(group, columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def _refuse_older(self) -> None:
        if self._file.schema_arrow.field("prompts").type in (pa.string(), pa.large_string()):
            raise ScaError(
                f"{self.path}: made by an older version; finish it with that one, or start again "
                "with --overwrite"
            )

    def check(self) -> None:
        """Compares the rows with the digest that was written beside them.

        Raises:
            ScaError: when they differ, or are those of an older version.
        """
        self._refuse_older()
        digest = RowsDigest(self._file.schema_arrow.names)
        for table in self._tables():
            digest.add(table)
        if digest.hexdigest() != self.rows_digest:
            raise ScaError(
                f"{self.path}: its rows are not those that were planned; start again with "
                "--overwrite"
            )


def open_run_plan(out: AnyPath) -> RunPlan:
    """The plan of the run in OUT.

    Raises:
        ScaError: when there is none.
    """
    path = out / PLAN_FILE
    if not path.exists():
        raise ScaError(f"{path}: no plan; this folder holds no run that could go on")
    return RunPlan(path)


def run_plan_frames(plan: Plan, shard_size: int) -> Iterator[pl.DataFrame]:
    """A fresh plan's rows with `RUN_PLAN_SCHEMA`'s columns, `shard_size` rows in each shard."""
    done = 0
    for batch in plan.batches():
        rows = pl.int_range(done, done + batch.height, dtype=pl.Int64)
        done += batch.height
        yield batch.with_columns(
            (rows // shard_size).cast(pl.Int32).alias("shard"),
            pl.lit(0, pl.Int32).alias("version"),
            pl.lit(False).alias("gone"),
            *stat_columns(batch),
        )


def stat_columns(batch: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Size and modification time of each local file; null for those that cannot be looked at.

    The size that an object store gave stays.
    """
    sizes: list[int | None] = []
    times: list[int | None] = []
    for uri, size in batch.select("uri", "size").iter_rows():
        status = None
        if "://" not in uri:
            try:
                status = os.stat(uri)
            except (OSError, ValueError):
                status = None
        sizes.append(size if status is None else status.st_size)
        times.append(None if status is None else status.st_mtime_ns)
    return (
        pl.Series("size", sizes, dtype=pl.Int64),
        pl.Series("mtime_ns", times, dtype=pl.Int64),
    )


def write_run_plan(
    frames: Iterable[pl.DataFrame], out: AnyPath, digest: str | None = None
) -> RunPlan:
    """Writes OUT/plan/manifest.parquet.

    `digest` is that of the plan the run began with, by default the frames' own: the sha256 of
    their `PLAN_SCHEMA` columns.
    """
    path = out / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [pl.col(name).cast(kind) for name, kind in RUN_PLAN_SCHEMA.items()]
    empty = pl.DataFrame(schema=RUN_PLAN_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest())
    plan_digest, rows_digest = RowsDigest(list(PLAN_SCHEMA)), RowsDigest(list(RUN_PLAN_SCHEMA))
    with (
        writing(path) as file,
        pq.ParquetWriter(file, empty.schema, compression="zstd") as writer,
    ):
        # Of small row groups, so that a shard's rows are found without looking at many others.
        for frame in rebatched(frames, ROWS_AT_ONCE):
            table = frame.select(columns).to_arrow(compat_level=pl.CompatLevel.oldest())
            rows_digest.add(table)
            if digest is None:
                plan_digest.add(table.select(list(PLAN_SCHEMA)))
            writer.write_table(table, row_group_size=ROWS_AT_ONCE)
        digests = {
            "sca.plan_digest": digest or plan_digest.hexdigest(),
            "sca.rows_digest": rows_digest.hexdigest(),
        }
        writer.add_key_value_metadata(digests)
    return RunPlan(path)


def gone_ids(out: AnyPath) -> frozenset[int]:
    """Ids of the images whose sources have vanished; they are left out of exports."""
    if not (out / PLAN_FILE).exists():
        return frozenset()
    plan = open_run_plan(out)
    if not len(plan.gone_rows):
        return frozenset()
    gone = (batch.filter("gone")["image_id"] for batch in plan.batches(["image_id", "gone"]))
    return frozenset(image_id for batch in gone for image_id in batch)
