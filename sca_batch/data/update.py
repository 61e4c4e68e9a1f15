"""A plan that follows its sources: what is new, what has changed, what has vanished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sca_batch.data.cut import CutPlan, open_plan, read_cut_frame, stat_columns, write_cut_plan
from sca_batch.data.plan import Plan
from sca_batch.data.shards import dataset_shards, iter_file, read_shard_mark
from sca_batch.errors import ScaError

__all__ = ["Updated", "retry_failed", "update_plan"]

DigestOf = Callable[[str], str | None]

STATS = ("size", "mtime_ns")
CELLS = ("uri", "file_name", "prompts", "extra")


@dataclass(frozen=True, slots=True)
class Updated:
    """How many rows of a plan are new, to be made again, vanished, back again, and as they were."""

    new: int
    changed: int
    gone: int
    back: int
    unchanged: int


def update_plan(
    out: Path, listed: Plan, shard_size: int, *, digest_of: DigestOf, verify_content: bool = False
) -> Updated:
    """Rewrites the plan of the run in OUT for what its sources hold now.

    New rows come last, in shards of their own, with ids after the highest. A row is made again
    when its cells differ, or when its file's size or time do and `digest_of` its uri is not the
    digest that its record carries; with `verify_content` every file's digest is taken. Rows that
    are listed no more are marked, and keep their records.
    """
    before = read_cut_frame(out)
    now = listed.frame.with_columns(*stat_columns(listed.frame["uri"]))
    both = before.with_row_index("row").join(
        now.select("key", *(pl.col(name).alias(f"{name}_now") for name in (*CELLS, *STATS))),
        on="key",
        how="left",
        maintain_order="left",
        coalesce=True,
    )
    here = both["uri_now"].is_not_null()
    rewritten = here & _differ(both, CELLS)
    suspects = here & ~rewritten
    if not verify_content:
        suspects &= both["gone"] | _differ(both, STATS)
    touched = set(both.filter(suspects)["row"].to_list())
    replaced = _replaced(out, both, touched, digest_of)
    changed = rewritten | both["row"].is_in(list(replaced))
    back = here & both["gone"]
    columns = [
        pl.when(pl.lit(here)).then(pl.col(f"{name}_now")).otherwise(pl.col(name)).alias(name)
        for name in (*CELLS, *STATS)
    ]
    kept = both.with_columns(
        *columns,
        (pl.col("version") + changed.cast(pl.Int32)).alias("version"),
        pl.Series("gone", ~here),
    ).select(before.columns)
    fresh = _fresh(before, now.join(before.select("key"), on="key", how="anti"), shard_size)
    write_cut_plan(pl.concat([kept, fresh]), out, open_plan(out).digest)
    return Updated(
        new=len(fresh),
        changed=int(changed.sum()),
        gone=int((~here & ~both["gone"]).sum()),
        back=int(back.sum()),
        unchanged=int((here & ~changed).sum()),
    )


def retry_failed(out: Path, codes: Collection[str] = ()) -> int:
    """Marks failed rows, all or those with one of the codes, to be made again; how many."""
    plan = open_plan(out)
    rows = [
        row
        for row, record in _records(out, plan, ["status", "error_code"])
        if record["status"] == "failed" and (not codes or record["error_code"] in codes)
    ]
    if rows:
        frame = read_cut_frame(out)
        again = np.zeros(len(frame), dtype=np.int32)
        again[rows] = 1
        again[plan.gone] = 0
        frame = frame.with_columns((pl.col("version") + pl.Series(again)).alias("version"))
        write_cut_plan(frame, out, plan.digest)
        return int(again.sum())
    return 0


def _differ(both: pl.DataFrame, names: Collection[str]) -> pl.Series:
    """Whether any of the columns has another value than its `_now`; two nulls are equal."""
    return both.select(
        pl.any_horizontal([pl.col(name).ne_missing(pl.col(f"{name}_now")) for name in names])
    ).to_series()


def _replaced(out: Path, both: pl.DataFrame, touched: set[int], digest_of: DigestOf) -> set[int]:
    """Of the touched rows, those whose file is not the one that their record was made from."""
    if not touched:
        return set()
    plan = open_plan(out)
    uris = both["uri_now"]
    return {
        row
        for row, record in _records(out, plan, ["sha256"])
        if row in touched and (record["sha256"] is None or digest_of(uris[row]) != record["sha256"])
    }


def _records(out: Path, plan: CutPlan, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row of the plan, some columns of its record) for every record of the run."""
    for path in dataset_shards(out):
        try:
            first = read_shard_mark(path, check_rows=False).first_row
        except ScaError:
            continue  # damaged: made again anyway
        for place, record in enumerate(iter_file(path, columns)):
            if first + place < len(plan):
                yield first + place, record


def _fresh(before: pl.DataFrame, new: pl.DataFrame, shard_size: int) -> pl.DataFrame:
    """Rows that the plan does not have, numbered after those that it has."""
    named_by_number = (before["image_id"].cast(pl.String) == before["key"]).all()
    given = named_by_number and (new["image_id"].cast(pl.String) == new["key"]).all()
    rows = pl.int_range(pl.len(), dtype=pl.Int64)
    highest, last = before["image_id"].max(), before["shard"].max()
    assert isinstance(highest, int)
    assert isinstance(last, int)
    return new.with_columns(
        pl.col("image_id") if given else (rows + highest + 1).alias("image_id"),
        (rows // shard_size + last + 1).cast(pl.Int32).alias("shard"),
        pl.lit(0, pl.Int32).alias("version"),
        pl.lit(False).alias("gone"),
    ).select(before.columns)
