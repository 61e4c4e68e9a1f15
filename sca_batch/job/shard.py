"""The records of one shard so far, committed to a hidden file now and then."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from sca_batch.dataset.shards import (
    DamagedShardError,
    ShardMark,
    read_shard,
    read_shard_mark,
    shard_path,
    write_shard,
)
from sca_batch.faults import fault
from sca_batch.job.run import PARTIAL_NAME
from sca_batch.plan.run_plan import RunPlan
from sca_batch.records import ImageRecord, ImageRef
from sca_batch.storage.stores import AnyPath

__all__ = ["JobContext", "ShardInProgress", "unit_index", "unit_name"]

log = logging.getLogger(__name__)


def unit_name(index: int) -> str:
    """The name of a shard as a unit of work."""
    return f"shard-{index:06d}"


def unit_index(unit: str) -> int:
    return int(unit.removeprefix("shard-"))


@dataclass(frozen=True, slots=True)
class JobContext:
    """The facts of a run that a worker needs; `digest` is its fingerprint's."""

    out: AnyPath
    digest: str
    rows_digest: str
    commit_every_s: float = 60.0


class ShardInProgress:
    """One shard: what is kept of it, what it was resumed from, what is left to do.

    Records are added in the order of the plan. Those of a finished file whose rows were not
    changed since are kept, and stand in where they stood.
    """

    def __init__(self, context: JobContext, plan: RunPlan, index: int) -> None:
        self.path = shard_path(context.out, index)
        self.index, self.plan, self.digest = index, plan, context.digest
        self.first_row, self.size = plan.first_row(index), plan.rows_of(index)
        self.commit_every_s = context.commit_every_s
        self.refs = plan.refs(index)
        self.partials = self._find_partials()
        self.records: list[ImageRecord] = self._resumed()
        self.kept = self._kept()
        self.committed = len(self.records)
        self.committed_at = time.monotonic()
        self._keep()

    @property
    def complete(self) -> bool:
        return len(self.records) == self.size

    def remaining(self) -> list[ImageRef]:
        """The images that have no record, in order."""
        done = len(self.records)
        return [ref for i, ref in enumerate(self.refs) if i >= done and i not in self.kept]

    def add(self, record: ImageRecord) -> None:
        self.records.append(record)
        self._keep()
        if not self.complete and time.monotonic() - self.committed_at > self.commit_every_s:
            self.commit()

    def commit(self) -> None:
        """Writes what is done: the shard when that is all, else its hidden beginning.

        Raises:
            OutputError: when the disk is full.
        """
        done = len(self.records)
        if done > self.committed or (self.complete and self._is_stale()):
            target = self.path if self.complete else self._partial(done)
            write_shard(self.records, target, self._mark(done))
            self.committed = done
            fault("worker.committed")
            for path in self.partials:
                if path != target:
                    path.unlink(missing_ok=True)
            self.partials = [] if target == self.path else [target]
        self.committed_at = time.monotonic()

    def _keep(self) -> None:
        while (row := len(self.records)) in self.kept:
            self.records.append(self.kept.pop(row))

    def _mark(self, rows: int) -> ShardMark:
        versions = self.plan.versions(self.index, rows)
        return ShardMark(
            self.index, self.first_row, self.first_row + rows - 1, self.digest, versions
        )

    def _is_stale(self) -> bool:
        try:
            return read_shard_mark(self.path, check_rows=False) != self._mark(self.size)
        except DamagedShardError:
            return True

    def _partial(self, rows: int) -> AnyPath:
        return self.path.with_name(f".{self.path.stem}.partial-{rows}.parquet")

    def _find_partials(self) -> list[AnyPath]:
        return sorted(
            self.path.parent.glob(f".{self.path.stem}.partial-*.parquet"),
            key=lambda path: int(m[2]) if (m := PARTIAL_NAME.fullmatch(path.name)) else -1,
        )

    def _resumed(self) -> list[ImageRecord]:
        for path in reversed(self.partials):
            try:
                mark = read_shard_mark(path)
                if mark == self._mark(mark.last_row - mark.first_row + 1):
                    return read_shard(path)
                log.warning("%s: made from other settings or files. It is made again.", path)
            except DamagedShardError as error:
                log.warning("%s. It is made again.", error)
        return []

    def _kept(self) -> dict[int, ImageRecord]:
        """Records of the finished file whose rows have not changed since it was written."""
        if not self.path.exists():
            return {}
        try:
            mark = read_shard_mark(self.path)
        except DamagedShardError:
            return {}
        whole = self._mark(self.size)
        if (mark.fingerprint, mark.first_row, mark.last_row) != (
            whole.fingerprint, whole.first_row, whole.last_row,
        ):  # fmt: skip
            return {}
        before, now = json.loads(mark.versions), json.loads(whole.versions)
        return {
            i: record
            for i, record in enumerate(read_shard(self.path))
            if before.get(str(i), 0) == now.get(str(i), 0)
        }
