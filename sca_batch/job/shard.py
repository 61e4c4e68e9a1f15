"""The records of one shard so far, committed to a hidden file now and then."""

from __future__ import annotations

import errno
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from sca_batch.data.cut import CutPlan
from sca_batch.data.shards import (
    ShardMark,
    read_shard,
    read_shard_mark,
    shard_path,
    write_shard,
)
from sca_batch.errors import OutputError, ScaError
from sca_batch.faults import fault
from sca_batch.job.run import PARTIAL_NAME
from sca_batch.records import ImageRecord, ImageRef

__all__ = ["JobContext", "ShardInProgress"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a worker needs to know of the run; `digest` is its fingerprint's."""

    out: Path
    digest: str
    rows_digest: str
    commit_every_s: float = 60.0


class ShardInProgress:
    """One shard: what is kept of it, what was taken up, what is left to do.

    Records are added in the order of the plan. Those of a finished file whose rows were not
    changed since are kept, and stand in at their places.
    """

    def __init__(self, context: JobContext, plan: CutPlan, index: int) -> None:
        self.path = shard_path(context.out, index)
        self.index, self.plan, self.digest = index, plan, context.digest
        self.first_row, self.size = plan.first_row(index), plan.rows_of(index)
        self.commit_every_s = context.commit_every_s
        self.refs = plan.refs(index)
        self.records: list[ImageRecord] = self._taken_up()
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
            try:
                write_shard(self.records, target, self._mark(done))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OutputError(
                    f"{self.path.parent}: no space left to write {target.name}; free about "
                    f"{_expected_mib(self.records)} MiB per {self.size} images. What was "
                    "committed is kept, and the same command goes on"
                ) from None
            self.committed = done
            fault("worker.committed")
            for path in self._partials():
                if path != target:
                    path.unlink(missing_ok=True)
        self.committed_at = time.monotonic()

    def _keep(self) -> None:
        while (place := len(self.records)) in self.kept:
            self.records.append(self.kept.pop(place))

    def _mark(self, rows: int) -> ShardMark:
        versions = self.plan.versions(self.index, rows)
        return ShardMark(
            self.index, self.first_row, self.first_row + rows - 1, self.digest, versions
        )

    def _is_stale(self) -> bool:
        try:
            return read_shard_mark(self.path, check_rows=False) != self._mark(self.size)
        except ScaError:
            return True

    def _partial(self, rows: int) -> Path:
        return self.path.with_name(f".{self.path.stem}.partial-{rows}.parquet")

    def _partials(self) -> list[Path]:
        return sorted(
            self.path.parent.glob(f".{self.path.stem}.partial-*.parquet"),
            key=lambda path: int(m[2]) if (m := PARTIAL_NAME.fullmatch(path.name)) else -1,
        )

    def _taken_up(self) -> list[ImageRecord]:
        for path in reversed(self._partials()):
            try:
                mark = read_shard_mark(path)
                if mark == self._mark(mark.last_row - mark.first_row + 1):
                    return read_shard(path)
                log.warning("%s: made from other settings or files. It is made again.", path)
            except ScaError as error:
                log.warning("%s. It is made again.", error)
        return []

    def _kept(self) -> dict[int, ImageRecord]:
        """Records of the finished file whose rows have not changed since it was written."""
        if not self.path.exists():
            return {}
        try:
            mark = read_shard_mark(self.path)
        except ScaError:
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


def _expected_mib(records: list[ImageRecord]) -> int:
    from sca_batch.data.rows import record_to_row, row_to_jsonl

    lengths = [len(row_to_jsonl(record_to_row(record))) for record in records[:8]]
    return 1 + int(sum(lengths) / max(1, len(lengths)) * len(records) / 2**20)
