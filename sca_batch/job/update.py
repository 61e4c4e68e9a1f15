"""A plan that follows its sources: what is new, what has changed, what has vanished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.images.decode import ANYWHERE, content_digest
from sca_batch.images.policy import ReadPolicy
from sca_batch.job.events import SourcesChanged
from sca_batch.job.shard import recorded_rows
from sca_batch.plan.plan import Plan
from sca_batch.plan.run_plan import (
    RUN_PLAN_SCHEMA,
    RunPlan,
    open_run_plan,
    stat_columns,
    write_run_plan,
)
from sca_batch.storage.spool import Spool, rebatched
from sca_batch.storage.stores import AnyPath

__all__ = ["retry_failed", "source_changes", "update_plan"]

STATS = ("size", "mtime_ns", "etag")
# Cells that captions are made from; and those that only say where the same bytes are.
MADE_FROM = ("prompts", "extra")
ADDRESS = ("uri", "file_name")
CELLS = (*ADDRESS, *MADE_FROM)
LISTED = {name: RUN_PLAN_SCHEMA[name] for name in ("image_id", "key", *CELLS, *STATS)}
# Rows of the plan that are compared at a time. Each time those of the listing that differ are
# fetched from disk: more rows, fewer fetches.
ROWS_AT_ONCE, BYTES_AT_ONCE = 1 << 19, 128 << 20
LARGEST_ID = 2**63 - 1


def update_plan(
    out: AnyPath,
    listed: Plan,
    shard_size: int,
    *,
    policy: ReadPolicy = ANYWHERE,
    verify_content: bool = False,
    rows_at_once: int = ROWS_AT_ONCE,
) -> SourcesChanged:
    """Rewrites the plan of the run in OUT for what its sources hold now.

    New rows come last, in shards of their own, with ids after the highest. A row is made again
    when its regions or its other columns differ; or when its address does, or its file's size or
    time, or its object's size or etag, and the file's digest is not the one that its record
    carries; with `verify_content` every file's digest is taken. What cannot be read now keeps its
    record, and is looked at again by the next update. Rows that are listed no more are marked, and
    keep their records.
    """
    plan, now = _checked_plan(out), _Listed(listed)
    counts: Counter[str] = Counter()
    last = _LastRow()

    def kept() -> Iterator[pl.DataFrame]:
        first = 0
        for block in rebatched(plan.batches(), rows_at_once, BYTES_AT_ONCE):
            last.see(block)
            there = now.find(block)
            suspects = there.here & ~there.rewritten
            if not verify_content:
                suspects &= there.stats_differ | there.was_gone | there.moved
            rows = np.flatnonzero(suspects)
            uris = dict(zip((rows + first).tolist(), now.uris(there, rows), strict=True))
            replaced, unreadable = _compared(out, plan, uris, policy)
            changed = there.rewritten.copy()
            changed[replaced - first] = True
            unread = np.zeros(block.height, dtype=np.bool_)
            unread[unreadable - first] = True
            counts["unreadable"] += len(unreadable)
            counts["changed"] += int(changed.sum())
            counts["gone"] += int((~there.here & ~there.was_gone).sum())
            counts["back"] += int((there.here & there.was_gone).sum())
            counts["unchanged"] += int((there.here & ~changed).sum())
            yield now.bring_up_to_date(block, there, ~unread).with_columns(
                pl.col("version") + pl.Series(changed).cast(pl.Int32),
                pl.Series("gone", ~there.here),
            )
            first += block.height

    def fresh() -> Iterator[pl.DataFrame]:
        given = last.named_by_number and now.new_are_named_by_number()
        if not given and last.image_id > LARGEST_ID - len(now.rows):
            raise ScaError(
                f"{out}: image_id {last.image_id} leaves no numbers for new images; give every row "
                "of the manifest an image_id"
            )
        for batch in now.new():
            numbers = pl.int_range(batch.height, dtype=pl.Int64) + counts["new"]
            yield batch.with_columns(
                pl.col("image_id") if given else (numbers + last.image_id + 1).alias("image_id"),
                (numbers // shard_size + last.shard + 1).cast(pl.Int32).alias("shard"),
                pl.lit(0, pl.Int32).alias("version"),
                pl.lit(False).alias("gone"),
            ).select(list(RUN_PLAN_SCHEMA))
            counts["new"] += batch.height

    write_run_plan(chain(kept(), fresh()), out, plan.digest)
    return _told(counts, followed=True)


def source_changes(
    plan: RunPlan, listed: Plan, *, rows_at_once: int = ROWS_AT_ONCE
) -> SourcesChanged:
    """The findings of `update_plan`, told from cells, sizes, times and etags alone."""
    now = _Listed(listed)
    counts: Counter[str] = Counter()
    for block in rebatched(plan.batches(), rows_at_once, BYTES_AT_ONCE):
        there = now.find(block)
        changed = there.rewritten | (there.here & (there.stats_differ | there.moved))
        counts["changed"] += int(changed.sum())
        counts["gone"] += int((~there.here & ~there.was_gone).sum())
        counts["back"] += int((there.here & there.was_gone).sum())
        counts["unchanged"] += int((there.here & ~changed).sum())
    counts["new"] = sum(batch.height for batch in now.new())
    return _told(counts, followed=False)


def _told(counts: Counter[str], *, followed: bool) -> SourcesChanged:
    return SourcesChanged(
        new=counts["new"],
        changed=counts["changed"],
        gone=counts["gone"],
        back=counts["back"],
        unchanged=counts["unchanged"],
        unreadable=counts["unreadable"],
        followed=followed,
    )


def retry_failed(out: AnyPath, codes: Collection[str] = ()) -> int:
    """Marks failed rows, all or those with one of the codes, to be made again; how many."""
    plan = _checked_plan(out)
    again = np.array(
        [
            row
            for index in range(plan.shards)
            for row, record in recorded_rows(out, plan, index, ["status", "error_code"]).items()
            if record["status"] == "failed"
            and (not codes or record["error_code"] in codes)
            and not plan.is_gone(row)
        ],
        dtype=np.int64,
    )

    def marked() -> Iterator[pl.DataFrame]:
        first = 0
        for batch in plan.batches():
            raised = np.isin(np.arange(first, first + batch.height), again).astype(np.int32)
            yield batch.with_columns(pl.col("version") + pl.Series(raised))
            first += batch.height

    if len(again):
        write_run_plan(marked(), out, plan.digest)
    return len(again)


class _LastRow:
    """The numbers that the rows of a plan end with, and whether ids are the rows' own."""

    image_id = -1
    shard = -1
    named_by_number = True

    def see(self, block: pl.DataFrame) -> None:
        self.image_id = max(self.image_id, int(block["image_id"].to_numpy().max()))
        self.shard = int(block["shard"][-1])
        self.named_by_number &= _named_by_number(block)


@dataclass(frozen=True, slots=True)
class _Found:
    """Of each row of a block: where it is listed, or -1, and how it differs from its listing."""

    listed_row: npt.NDArray[np.int64]
    rewritten: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.bool_]
    stats_differ: npt.NDArray[np.bool_]
    was_gone: npt.NDArray[np.bool_]

    @property
    def here(self) -> npt.NDArray[np.bool_]:
        return self.listed_row >= 0


class _Listed:
    """Rows of the sources as they are now, on disk, and 40 bytes of each to compare it by."""

    def __init__(self, listed: Plan) -> None:
        self.rows = Spool(LISTED)
        none = np.zeros(0, np.uint64)
        made_from, addresses, stats = [none], [none], [none]
        for batch in listed.batches():
            batch = batch.with_columns(*stat_columns(batch))
            self.rows.add(batch)
            made_from.append(_hash(batch, ("key", *MADE_FROM)))
            addresses.append(_hash(batch, ADDRESS))
            stats.append(_hash(batch, STATS))
        self._made_from, self._addresses, self._stats = map(
            np.concatenate, (made_from, addresses, stats)
        )
        # Keys are all different; with the right seed so are their hashes.
        for self._seed in count(1):
            keys = (_hash(batch, ("key",), self._seed) for batch in self.rows.batches(["key"]))
            hashes = np.concatenate([none, *keys])
            self._order = np.argsort(hashes)
            self._keys = hashes[self._order]
            if not len(hashes) or (self._keys[1:] != self._keys[:-1]).all():
                break
        self._seen = np.zeros(len(self.rows), dtype=np.bool_)

    def find(self, block: pl.DataFrame) -> _Found:
        keys = _hash(block, ("key",), self._seed)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        row = np.where(self._keys[at] == keys, self._order[at], -1)
        here = row >= 0
        self._seen[row[here]] = True
        return _Found(
            row,
            here & (self._made_from[row] != _hash(block, ("key", *MADE_FROM))),
            here & (self._addresses[row] != _hash(block, ADDRESS)),
            here & (self._stats[row] != _hash(block, STATS)),
            block["gone"].to_numpy(),
        )

    def uris(self, there: _Found, rows: npt.NDArray[np.int64]) -> list[str]:
        """Where the images of some rows of a block are listed now."""
        listed_row = there.listed_row[rows]
        found = self.rows.take(listed_row)["uri"]
        return found.gather(np.searchsorted(np.unique(listed_row), listed_row)).to_list()

    def bring_up_to_date(
        self, block: pl.DataFrame, there: _Found, where: npt.NDArray[np.bool_]
    ) -> pl.DataFrame:
        """The block with the cells and stats that are listed now, where they differ."""
        rows_here = np.flatnonzero((there.rewritten | there.moved | there.stats_differ) & where)
        if not len(rows_here):
            return block
        listed_row = there.listed_row[rows_here]
        now = self.rows.take(listed_row)[np.searchsorted(np.unique(listed_row), listed_row)]
        assert now["key"].equals(block["key"].gather(rows_here)), "two keys have one hash"
        # Not scattered: polars does not for lists of structs.
        taken = np.arange(block.height)
        taken[rows_here] = block.height + np.arange(len(rows_here))
        return block.with_columns(
            pl.concat([block[name], now[name]]).gather(taken) for name in (*CELLS, *STATS)
        )

    def new(self) -> Iterator[pl.DataFrame]:
        """The rows that were not found in any block."""
        first = 0
        for batch in self.rows.batches():
            yield batch.filter(~pl.Series(self._seen[first : first + batch.height]))
            first += batch.height

    def new_are_named_by_number(self) -> bool:
        return all(_named_by_number(batch) for batch in self.new())


def _hash(frame: pl.DataFrame, columns: tuple[str, ...], seed: int = 0) -> npt.NDArray[np.uint64]:
    return frame.select(columns).hash_rows(seed).to_numpy()


def _named_by_number(frame: pl.DataFrame) -> bool:
    return bool((frame["image_id"].cast(pl.String) == frame["key"]).all())


def _checked_plan(out: AnyPath) -> RunPlan:
    plan = open_run_plan(out)
    plan.check()
    return plan


def _compared(
    out: AnyPath, plan: RunPlan, uris: dict[int, str], policy: ReadPolicy
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of the rows in `uris`: those whose file is not the one that their record was made from, and
    those whose file cannot be read now though there is a record of it."""
    rows = np.fromiter(uris, dtype=np.int64, count=len(uris))
    replaced: list[int] = []
    unreadable: list[int] = []
    for index in np.unique(plan.shards_of(rows)).tolist():
        for row, record in recorded_rows(out, plan, index, ["sha256"]).items():
            if row not in uris:
                continue
            digest = content_digest(uris[row], policy=policy)
            if digest is None and record["sha256"] is not None:
                unreadable.append(row)
            elif digest is not None and digest != record["sha256"]:
                replaced.append(row)
    return np.array(replaced, dtype=np.int64), np.array(unreadable, dtype=np.int64)
