"""One captioning job: plan, skip what is done, caption the rest, export.

The plan is made once. A shard file under its final name is complete; the rows of a shard that was
interrupted stand in a hidden file beside it and are taken up again. There is no other memory.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sca_batch.data.plan import PLAN_FILE, Plan, read_plan, shard_count, shard_refs, write_plan
from sca_batch.data.shards import (
    CONTENT_VERSION,
    RUN_FILE,
    ShardMark,
    dataset_shards,
    differing_keys,
    fingerprint_digest,
    finished_shards,
    read_run,
    read_shard,
    read_shard_mark,
    shard_path,
    write_run,
    write_shard,
)
from sca_batch.errors import ScaError
from sca_batch.pipeline import Pipeline
from sca_batch.records import ImageRecord

__all__ = ["Outcome", "Run", "locked", "open_run", "remove_run", "run_job"]

LOCK_FILE = ".lock"
COCO_FILE = "captions.json"
PARTIAL_NAME = re.compile(r"\.shard-(\d{6,})\.partial-(\d+)\.parquet")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that exists on disk: its folder, its plan and what its records depend on."""

    out: Path
    plan: Plan
    shard_size: int
    fingerprint: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return shard_count(self.plan, self.shard_size)

    def rows_of(self, index: int) -> int:
        return min(self.shard_size, len(self.plan) - index * self.shard_size)


@dataclass
class Outcome:
    """What a job did, in counts; `images` and `regions` are this session's."""

    images: int = 0
    regions: int = 0
    resumed_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped: bool = False


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder. The lock dies with its process, however that ends.

    Raises:
        ScaError: when another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScaError(
                f"{out}: another run is writing here; wait for it, or choose another -o"
            ) from None
        yield


def open_run(
    out: Path,
    *,
    make_plan: Callable[[], Plan],
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    shard_size: int,
) -> Run:
    """Starts a run in `out`, or takes up the one that is there.

    `content` holds every setting that records depend on; `settings` is informative. A run that
    is there keeps its plan: its source is not listed again.

    Raises:
        ScaError: when the run there was made with other settings, naming those that differ.
    """
    exists = (out / RUN_FILE).is_file()
    plan = read_plan(out) if exists else make_plan()
    fingerprint = {
        "content_version": CONTENT_VERSION,
        "plan": plan.digest,
        "shard_size": shard_size,
        **content,
    }
    if exists:
        differing = differing_keys(read_run(out)["fingerprint"], fingerprint)
        if differing:
            details = "; ".join(
                f"{key} was {before!r}, is now {after!r}"
                for key, (before, after) in differing.items()
            )
            raise ScaError(
                f"{out}: this run was started with other settings: {details}. Repeat it as it was "
                "started, choose another -o, or start over with --overwrite"
            )
    else:
        write_plan(plan, out)
        # Last, so that a folder with run.json always has its plan.
        write_run(out, {"fingerprint": fingerprint, "settings": dict(settings)})
    return Run(out, plan, shard_size, fingerprint)


def run_job(
    run: Run,
    make_pipeline: Callable[[], Pipeline],
    *,
    commit_every_s: float = 60.0,
    on_record: Callable[[ImageRecord], None] = lambda record: None,
    on_resumed: Callable[[int], None] = lambda images: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Captions every image of the plan that has no record yet.

    Stops between two images when `should_stop` says so; what is done is committed.
    """
    outcome = Outcome()
    began = time.monotonic()
    digest = fingerprint_digest(run.fingerprint)
    checked = finished_shards(run.out, digest)
    for reason in checked.refused.values():
        log.warning("%s. It is made again.", reason)
    for index in sorted(checked.finished):
        outcome.resumed_images += run.rows_of(index)
    on_resumed(outcome.resumed_images)
    pipeline: Pipeline | None = None
    for index in range(run.shards):
        if index in checked.finished:
            continue
        if should_stop():
            outcome.stopped = True
            break
        pipeline = pipeline or make_pipeline()
        shard = _ShardInProgress(run, index, digest, commit_every_s)
        if shard.records:
            outcome.resumed_images += len(shard.records)
            on_resumed(len(shard.records))
        refs = list(shard_refs(run.plan, index, run.shard_size))[len(shard.records) :]
        records = pipeline.run(refs)
        try:
            for record in records:
                shard.add(record)
                outcome.images += 1
                outcome.regions += len(record.regions)
                on_record(record)
                if should_stop():
                    break
        finally:
            # Whatever ends this loop, a stop, Ctrl-C or a bug: what is done stays done.
            records.close()
            shard.commit()
        if not shard.complete:
            outcome.stopped = True
            break
    outcome.failures = _count_failures(run)
    outcome.seconds = time.monotonic() - began
    return outcome


class _ShardInProgress:
    """The records of one shard so far, committed to a hidden file now and then."""

    def __init__(self, run: Run, index: int, digest: str, commit_every_s: float) -> None:
        self.path = shard_path(run.out, index)
        self.index, self.digest = index, digest
        self.first_row = index * run.shard_size
        self.size = run.rows_of(index)
        self.commit_every_s = commit_every_s
        self.records: list[ImageRecord] = self._taken_up()
        self.committed = len(self.records)
        self.committed_at = time.monotonic()

    @property
    def complete(self) -> bool:
        return len(self.records) == self.size

    def add(self, record: ImageRecord) -> None:
        self.records.append(record)
        if not self.complete and time.monotonic() - self.committed_at > self.commit_every_s:
            self.commit()

    def commit(self) -> None:
        done = len(self.records)
        if done > self.committed or (self.complete and not self.path.exists()):
            target = self.path if self.complete else self._partial(done)
            mark = ShardMark(self.index, self.first_row, self.first_row + done - 1, self.digest)
            write_shard(self.records, target, mark)
            self.committed = done
            for path in self._partials():
                if path != target:
                    path.unlink(missing_ok=True)
        self.committed_at = time.monotonic()

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
                if mark.fingerprint == self.digest and mark.first_row == self.first_row:
                    return read_shard(path)
                log.warning("%s: made by a run with other settings. It is made again.", path)
            except ScaError as error:
                log.warning("%s. It is made again.", error)
        return []


def remove_run(out: Path) -> None:
    """Removes a run's own files from `out`, and nothing else."""
    for path in [*dataset_shards(out), out / COCO_FILE, out / RUN_FILE]:
        path.unlink(missing_ok=True)
    for path in out.glob(".shard-*.parquet"):
        if PARTIAL_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    shutil.rmtree(out / PLAN_FILE.parent, ignore_errors=True)


def refuse_foreign_folder(out: Path) -> None:
    """Keeps a new run out of a folder that holds something else.

    Raises:
        ScaError: for a folder with files but without run.json.
    """
    if out.exists() and not out.is_dir():
        raise ScaError(f"{out} is a file; name a folder with -o")
    names = [path.name for path in out.iterdir() if path.name != LOCK_FILE] if out.is_dir() else []
    ours = {RUN_FILE, str(PLAN_FILE.parent)}
    if names and not ours & set(names):
        raise ScaError(
            f"{out} holds other files ({sorted(names)[0]}, ...) and no run; name a new folder "
            "with -o"
        )


def _count_failures(run: Run) -> Counter[str]:
    from sca_batch.data.shards import iter_rows

    rows = iter_rows(run.out, ["status", "error_code"])
    return Counter(str(row["error_code"]) for row in rows if row["status"] == "failed")
