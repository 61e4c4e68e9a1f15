"""From what is there to what is missing: finds the shards to make and has a runner make them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sca_batch.data.atomic import remove_unfinished
from sca_batch.data.shards import dataset_shards, finished_shards, iter_file, read_shard_mark
from sca_batch.faults import fault
from sca_batch.job.run import PARTIAL_NAME, Run
from sca_batch.job.shard import JobContext
from sca_batch.job.worker import ImageDone, TakenUp, unit_name
from sca_batch.runners import Done, Event, Lost, Runner, Stopped

__all__ = ["Outcome", "run_job"]

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a job did, in counts; `images` and `regions` are this session's."""

    images: int = 0
    regions: int = 0
    resumed_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False


def run_job(
    run: Run,
    runner: Runner,
    *,
    commit_every_s: float = 60.0,
    on_record: Callable[[ImageDone], None] = lambda image: None,
    on_resumed: Callable[[int], None] = lambda images: None,
    on_stages: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Captions every image of the plan that has no record yet.

    Stops between two images when `should_stop` says so; what is done is committed.
    """
    outcome = Outcome()
    began = time.monotonic()
    finished = _finished(run)
    outcome.resumed_images = sum(run.plan.rows_of(index) for index in finished)
    on_resumed(outcome.resumed_images)
    # Keys of shards in progress: after a death a worker says some of them again.
    heard: dict[str, set[str]] = {}
    completed = len(finished)

    def hear(event: Event) -> None:
        nonlocal completed
        if isinstance(event, Lost):
            outcome.lost.append(event)
        elif isinstance(event, Stopped):
            completed += event.complete
            heard.pop(event.unit, None)
            on_stages(event.result)
        elif isinstance(event, Done) and isinstance(event.result, TakenUp):
            if event.result.unit not in heard:
                outcome.resumed_images += event.result.images
                on_resumed(event.result.images)
            heard.setdefault(event.result.unit, set())
        elif isinstance(event, Done) and isinstance(event.result, ImageDone):
            keys = heard.setdefault(event.result.unit, set())
            if event.item not in keys:
                keys.add(event.item)
                outcome.images += 1
                outcome.regions += event.result.regions
                on_record(event.result)

    context = JobContext(run.out, run.digest, run.plan.rows_digest, commit_every_s)
    missing = (unit_name(i) for i in range(run.plan.shards) if i not in finished)
    runner.run(missing, context, hear, should_stop)
    outcome.stopped = completed + len(outcome.lost) < run.plan.shards
    if not outcome.stopped and not outcome.lost:
        _tidy(run)
        fault("job.finished")
    outcome.failures = count_failures(run)
    outcome.seconds = time.monotonic() - began
    return outcome


def _finished(run: Run) -> set[int]:
    """Shards that need not be made again: this run's, whole, and of the plan as it is now."""
    checked = finished_shards(run.out, run.digest)
    for reason in checked.refused.values():
        log.warning("%s. It is made again.", reason)
    plan = run.plan
    return {
        index
        for index, mark in checked.finished.items()
        if index < plan.shards
        and (mark.first_row, mark.last_row + 1)
        == (plan.first_row(index), plan.first_row(index) + plan.rows_of(index))
        and mark.versions == plan.versions(index)
    }


def _tidy(run: Run) -> None:
    """Removes what workers that died have left: files half written, beginnings of whole shards."""
    remove_unfinished(run.out)
    for path in run.out.glob(".shard-*.parquet"):
        if PARTIAL_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def count_failures(run: Run) -> Counter[str]:
    """How many images failed, by code; those whose source has vanished do not count."""
    failures: Counter[str] = Counter()
    for path in dataset_shards(run.out):
        row_number = read_shard_mark(path, check_rows=False).first_row
        for row in iter_file(path, ["status", "error_code"]):
            gone = row_number < len(run.plan) and run.plan.gone[row_number]
            if row["status"] == "failed" and not gone:
                failures[str(row["error_code"])] += 1
            row_number += 1
    return failures
