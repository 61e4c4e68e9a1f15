"""From what is there to what is missing: finds the shards to make and has a runner make them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sca_batch.dataset.shards import checked_shards, dataset_shards, failed_rows
from sca_batch.faults import fault
from sca_batch.job import events
from sca_batch.job.events import ImageDone, Listener, ShardLost, StageSeconds, ignore
from sca_batch.job.request import ModelReport
from sca_batch.job.run import PARTIAL_NAME, Run
from sca_batch.job.shard import JobContext, unit_name
from sca_batch.job.summary import StageTimes
from sca_batch.runners.protocol import Done, Event, Lost, Resumed, Runner, Stopped
from sca_batch.storage.atomic import remove_unfinished
from sca_batch.storage.stores import each

__all__ = ["Tally", "finished_shards", "run_job"]

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """A session in counts; `failures` are those of the whole dataset."""

    images: int = 0
    regions: int = 0
    resumed_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lost: list[ShardLost] = field(default_factory=list)
    stages: StageTimes = field(default_factory=StageTimes)
    seconds: float = 0.0
    stopped: bool = False


def run_job(
    run: Run,
    runner: Runner[JobContext, ImageDone, StageSeconds, ModelReport],
    *,
    commit_every_s: float = 60.0,
    listen: Listener = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tally:
    """Captions every image of the plan that has no record yet.

    Stops between two images when `should_stop` says so; what is done is committed.
    """
    tally = Tally()
    began = time.monotonic()
    finished = finished_shards(run)
    # Keys of shards in progress: after a death a worker says some of them again.
    heard: dict[str, set[str]] = {}
    completed = int(finished.sum())

    def resumed(images: int) -> None:
        tally.resumed_images += images
        listen(events.Resumed(images))

    def hear(event: Event[ImageDone, StageSeconds]) -> None:
        nonlocal completed
        if isinstance(event, Lost):
            tally.lost.append(ShardLost(event.unit, event.error, event.is_bug))
            listen(tally.lost[-1])
        elif isinstance(event, Stopped):
            completed += event.complete
            heard.pop(event.unit, None)
            tally.stages.add(event.result)
        elif isinstance(event, Resumed):
            if event.unit not in heard:
                resumed(event.items)
            heard.setdefault(event.unit, set())
        elif isinstance(event, Done):
            keys = heard.setdefault(event.result.shard, set())
            if event.item not in keys:
                keys.add(event.item)
                tally.images += 1
                tally.regions += event.result.regions
                listen(event.result)

    resumed(sum(run.plan.rows_of(int(i)) for i in np.flatnonzero(finished)))
    context = JobContext(run.out, run.digest, run.plan.rows_digest, commit_every_s)
    missing = (unit_name(i) for i in range(run.plan.shards) if not finished[i])
    runner.run(missing, context, hear, should_stop)
    tally.stopped = completed + len(tally.lost) < run.plan.shards
    if not tally.stopped and not tally.lost:
        _tidy(run)
        fault("job.finished")
    tally.failures = count_failures(run)
    tally.seconds = time.monotonic() - began
    return tally


def finished_shards(run: Run) -> npt.NDArray[np.bool_]:
    """Of each shard, whether it need not be made again: this run's, whole, of the plan as it is."""
    plan = run.plan
    finished = np.zeros(plan.shards, dtype=np.bool_)
    for _, mark in checked_shards(run.out, run.digest):
        if isinstance(mark, str):
            log.warning("%s. It is made again.", mark)
        elif mark.index < plan.shards:
            first = plan.first_row(mark.index)
            finished[mark.index] = (mark.first_row, mark.last_row + 1, mark.versions) == (
                first,
                first + plan.rows_of(mark.index),
                plan.versions(mark.index),
            )
    return finished


def _tidy(run: Run) -> None:
    """Removes what workers that died have left: files half written, beginnings of whole shards."""
    remove_unfinished(run.out)
    for path in run.out.glob(".shard-*.parquet"):
        if PARTIAL_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def count_failures(run: Run) -> Counter[str]:
    """The number of images that failed, by code; those whose source has vanished do not count."""
    return Counter(
        code
        for failed in each(run.out, failed_rows, dataset_shards(run.out))
        for row, code in failed
        if not run.plan.is_gone(row)
    )
