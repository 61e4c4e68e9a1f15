"""The records of one shard so far, committed to hidden pieces of it now and then."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from sca_batch.dataset.schema import RecordRow
from sca_batch.dataset.shards import (
    DamagedShardError,
    ShardMark,
    iter_file,
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

__all__ = [
    "JobContext", "ShardInProgress", "find_pieces", "recorded_rows", "unit_index", "unit_name",
]  # fmt: skip

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
    """One shard: what is kept of it, and what is left to do.

    Records are added in the order of the plan. Those that are on disk already, in the finished
    file or in hidden pieces of it, stand in where they stood if their rows have not changed since.
    Each commit appends a piece with what is new.
    """

    def __init__(self, context: JobContext, plan: RunPlan, index: int) -> None:
        self.path = shard_path(context.out, index)
        self.index, self.plan, self.digest = index, plan, context.digest
        self.first_row, self.size = plan.first_row(index), plan.rows_of(index)
        self.versions: dict[str, int] = json.loads(plan.versions(index))
        self.commit_every_s = context.commit_every_s
        self.refs = plan.refs(index)
        self.pieces = find_pieces(context.out, index)
        self.kept = self._kept()
        self.records: list[ImageRecord] = []
        self._keep()
        self.committed = len(self.records)
        self.committed_at = time.monotonic()

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
        """Writes what is done: the shard when that is all, else what is new as a hidden piece.

        Raises:
            OutputError: when the disk is full.
        """
        done = len(self.records)
        if self.complete:
            if done > self.committed or self._is_stale():
                write_shard(self.records, self.path, self._mark(0, done))
                fault("worker.committed")
            for path in self.pieces:
                path.unlink(missing_ok=True)
            self.pieces = []
        elif done > self.committed:
            target = self._piece(self.committed, done)
            write_shard(self.records[self.committed :], target, self._mark(self.committed, done))
            self.pieces.append(target)
            fault("worker.committed")
        self.committed = done
        self.committed_at = time.monotonic()

    def _keep(self) -> None:
        while (row := len(self.records)) in self.kept:
            self.records.append(self.kept.pop(row))

    def _mark(self, first: int, last: int) -> ShardMark:
        """What a file says that holds the rows from `first` to before `last`."""
        versions = {row: v for row, v in self.versions.items() if first <= int(row) < last}
        return ShardMark(
            self.index,
            self.first_row + first,
            self.first_row + last - 1,
            self.digest,
            json.dumps(versions),
        )

    def _is_stale(self) -> bool:
        try:
            return read_shard_mark(self.path, check_rows=False) != self._mark(0, self.size)
        except DamagedShardError:
            return True

    def _piece(self, first: int, last: int) -> AnyPath:
        return self.path.with_name(f".{self.path.stem}.partial-{first}-{last}.parquet")

    def _kept(self) -> dict[int, ImageRecord]:
        """Records on disk whose rows have not changed since, by their row in the shard."""
        kept: dict[int, ImageRecord] = {}
        finished = [self.path] if self.path.exists() else []
        for path in [*finished, *self.pieces]:
            try:
                mark = read_shard_mark(path)
                records = read_shard(path)
            except DamagedShardError as error:
                log.warning("%s. It is made again.", error)
                continue
            first = mark.first_row - self.first_row
            fits = mark.index == self.index and first >= 0 and first + len(records) <= self.size
            if mark.fingerprint != self.digest or not fits:
                log.warning("%s: made from other settings or files. It is made again.", path)
                continue
            before = json.loads(mark.versions)
            kept |= {
                row: record
                for row, record in enumerate(records, start=first)
                if before.get(str(row), 0) == self.versions.get(str(row), 0)
            }
        return kept


def find_pieces(out: AnyPath, index: int) -> list[AnyPath]:
    """The hidden pieces of a shard that is not finished, in the order of their rows."""
    stem = shard_path(out, index).stem
    found = [
        (int(match[2]), int(match[3]), path)
        for path in out.glob(f".{stem}.partial-*.parquet")
        if (match := PARTIAL_NAME.fullmatch(path.name))
    ]
    return [path for *_, path in sorted(found, key=lambda piece: piece[:2])]


def recorded_rows(
    out: AnyPath, plan: RunPlan, index: int, columns: list[str]
) -> dict[int, RecordRow]:
    """Some columns of every record of a shard that is on disk, by its row in the plan.

    What stands in a piece is newer than what stands in the finished file.
    """
    finished = shard_path(out, index)
    rows: dict[int, RecordRow] = {}
    for path in [*([finished] if finished.exists() else []), *find_pieces(out, index)]:
        try:
            mark = read_shard_mark(path, check_rows=False)
        except DamagedShardError:
            continue  # it is made again anyway
        if mark.index == index and plan.first_row(index) <= mark.first_row:
            rows |= enumerate(iter_file(path, columns), start=mark.first_row)
    return rows
