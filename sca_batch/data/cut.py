"""The plan of a run on disk: cut into shards, versioned row by row, read one shard at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sca_batch.data.atomic import writing
from sca_batch.data.columns import prompts_from_json
from sca_batch.data.digests import digest_rows
from sca_batch.data.plan import PLAN_FILE, PLAN_SCHEMA, Plan
from sca_batch.errors import ScaError
from sca_batch.records import ImageRef

__all__ = [
    "CUT_SCHEMA",
    "CutPlan",
    "cut_frame",
    "gone_ids",
    "open_plan",
    "read_cut_frame",
    "stat_columns",
    "write_cut_plan",
]

# What a run adds to the rows of a plan. A row's version rises when it is to be done again; `gone`
# marks one whose source has vanished; size and time are the file's when it was listed.
CUT_SCHEMA = {
    **PLAN_SCHEMA,
    "shard": pl.Int32(),
    "version": pl.Int32(),
    "gone": pl.Boolean(),
    "size": pl.Int64(),
    "mtime_ns": pl.Int64(),
}
ROWS_AT_ONCE = 4096  # of a row group: what is read to find the rows of one shard


class CutPlan:
    """OUT/plan/manifest.parquet. Only the shards' bounds, versions and vanished rows are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
            metadata = self._file.schema_arrow.metadata or {}
            table = self._file.read(["shard", "version", "gone"])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ScaError(
                f"{path}: not a readable plan ({error}); start again with --overwrite"
            ) from None
        if not metadata.keys() >= {b"sca.plan_digest", b"sca.rows_digest"}:
            raise ScaError(f"{path}: not a plan of this program; start again with --overwrite")
        self.digest = metadata[b"sca.plan_digest"].decode()
        self.rows_digest = metadata[b"sca.rows_digest"].decode()
        self._starts = _starts(table["shard"].to_numpy())
        self._versions: npt.NDArray[np.int32] = table["version"].to_numpy()
        self.gone: npt.NDArray[np.bool_] = table["gone"].to_numpy()
        self._cached: tuple[int, list[dict[str, object]]] = (-1, [])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shards(self) -> int:
        return len(self._starts) - 1

    def first_row(self, index: int) -> int:
        return int(self._starts[index])

    def rows_of(self, index: int) -> int:
        return int(self._starts[index + 1] - self._starts[index])

    def versions(self, index: int, rows: int | None = None) -> str:
        """The versions of a shard's first `rows` rows that are not 0, as shards carry them."""
        first = self.first_row(index)
        versions = self._versions[first : first + (self.rows_of(index) if rows is None else rows)]
        return json.dumps({str(i): int(versions[i]) for i in np.flatnonzero(versions)})

    def refs(self, index: int) -> list[ImageRef]:
        """The images of one shard."""
        first, last = self.first_row(index), self.first_row(index) + self.rows_of(index)
        rows: list[dict[str, object]] = []
        while first < last:
            group = first // ROWS_AT_ONCE
            start = group * ROWS_AT_ONCE
            rows += self._group(group)[first - start : last - start]
            first = start + ROWS_AT_ONCE
        return [_ref(row) for row in rows]

    def _group(self, group: int) -> list[dict[str, object]]:
        if self._cached[0] != group:
            table = self._file.read_row_group(group, list(PLAN_SCHEMA), use_threads=False)
            self._cached = (group, table.to_pylist())
        return self._cached[1]

    def check(self) -> None:
        """Compares the rows with the digest that was written beside them.

        Raises:
            ScaError: when they differ.
        """
        if digest_rows(self._file.read()) != self.rows_digest:
            raise ScaError(
                f"{self.path}: its rows are not those that were planned; start again with "
                "--overwrite"
            )


def open_plan(out: Path) -> CutPlan:
    """The plan of the run in OUT.

    Raises:
        ScaError: when there is none.
    """
    path = out / PLAN_FILE
    if not path.exists():
        raise ScaError(f"{path}: no plan; this folder holds no run that could go on")
    return CutPlan(path)


def cut_frame(plan: Plan, shard_size: int) -> pl.DataFrame:
    """A fresh plan's rows with `CUT_SCHEMA`'s columns, `shard_size` rows in each shard."""
    rows = pl.int_range(pl.len(), dtype=pl.Int64)
    return plan.frame.with_columns(
        (rows // shard_size).cast(pl.Int32).alias("shard"),
        pl.lit(0, pl.Int32).alias("version"),
        pl.lit(False).alias("gone"),
        *stat_columns(plan.frame["uri"]),
    )


def stat_columns(uris: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Size and modification time of each local file; null for those that cannot be looked at."""
    sizes: list[int | None] = []
    times: list[int | None] = []
    for uri in uris:
        status = None
        if "://" not in uri:
            try:
                status = os.stat(uri)
            except (OSError, ValueError):
                status = None
        sizes.append(None if status is None else status.st_size)
        times.append(None if status is None else status.st_mtime_ns)
    return (
        pl.Series("size", sizes, dtype=pl.Int64),
        pl.Series("mtime_ns", times, dtype=pl.Int64),
    )


def write_cut_plan(frame: pl.DataFrame, out: Path, digest: str) -> CutPlan:
    """Writes OUT/plan/manifest.parquet; `digest` is that of the plan the run began with."""
    path = out / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = frame.select([pl.col(name).cast(kind) for name, kind in CUT_SCHEMA.items()])
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    metadata = {b"sca.plan_digest": digest, b"sca.rows_digest": digest_rows(table)}
    with writing(path) as file:
        # Of equal row groups, so that a shard's rows are found without looking at others.
        pq.write_table(
            table.replace_schema_metadata(metadata),
            file,
            row_group_size=ROWS_AT_ONCE,
            compression="zstd",
        )
    return CutPlan(path)


def read_cut_frame(out: Path) -> pl.DataFrame:
    """Every row of the plan of the run in OUT."""
    plan = open_plan(out)
    plan.check()
    return pl.read_parquet(plan.path).select(list(CUT_SCHEMA))


def gone_ids(out: Path) -> frozenset[int]:
    """Ids of the images whose sources have vanished; they are left out of exports."""
    if not (out / PLAN_FILE).exists():
        return frozenset()
    plan = open_plan(out)
    if not plan.gone.any():
        return frozenset()
    ids = pq.read_table(plan.path, columns=["image_id"])["image_id"].to_numpy()
    return frozenset(ids[plan.gone].tolist())


def _starts(shards: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    if not len(shards):
        return np.zeros(1, dtype=np.int64)
    bounds = np.flatnonzero(np.diff(shards)) + 1
    return np.concatenate([[0], bounds, [len(shards)]]).astype(np.int64)


def _ref(row: dict[str, object]) -> ImageRef:
    prompts = row["prompts"]
    assert prompts is None or isinstance(prompts, str)
    image_id = row["image_id"]
    assert isinstance(image_id, int)
    return ImageRef(
        image_id=image_id,
        key=str(row["key"]),
        uri=str(row["uri"]),
        file_name=str(row["file_name"]),
        prompts=prompts_from_json(prompts),
        extra=json.loads(str(row["extra"])),
    )
