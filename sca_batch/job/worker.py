"""The worker of a job: resumes a shard, captions its images, commits."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from sca_batch.faults import fault
from sca_batch.job.events import ImageDone, StageSeconds
from sca_batch.job.request import ModelReport
from sca_batch.job.shard import JobContext, ShardInProgress, unit_index
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.plan.run_plan import RunPlan, open_run_plan
from sca_batch.records import ImageRecord, ImageRef
from sca_batch.runners.protocol import Alive, Began, Done, Emit, GiveUp, Resumed, Stopped, Task

__all__ = ["ShardWorker", "StageClock", "image_done"]

ALIVE_EVERY_S = 0.5
WHY = {
    "killed_worker": "the process that worked on this image alone died, again and again",
    "timeout": "this image alone took longer than --image-timeout",
}


class StageClock:
    """Times of a pipeline's stages, in seconds, one entry per image or batch."""

    def __init__(self) -> None:
        self.beat: Callable[[], None] = lambda: None
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The watch of a pipeline."""
        began = time.perf_counter()
        yield
        self._seconds[name].append(time.perf_counter() - began)
        # Threads that decode ahead must not vouch for the image that the model is at.
        if threading.current_thread() is threading.main_thread():
            self.beat()

    def take(self) -> StageSeconds:
        """The times since the last call."""
        taken, self._seconds = dict(self._seconds), defaultdict(list)
        return taken


class ShardWorker:
    """One pipeline, watched by a clock, and the shards that it is given one after the other."""

    def __init__(self, pipeline: Pipeline, clock: StageClock, report: ModelReport) -> None:
        self.pipeline, self.clock, self.report = pipeline, clock, report
        self._plan: RunPlan | None = None

    def about(self) -> ModelReport:
        return self.report

    def run(
        self,
        task: Task[JobContext],
        emit: Emit[ImageDone, StageSeconds],
        should_stop: Callable[[], bool],
    ) -> Stopped[StageSeconds]:
        """Captions what is left of a shard. Whatever ends it, what is done is committed."""
        context = task.context
        self.clock.beat = _at_most_every(ALIVE_EVERY_S, lambda: emit(Alive()))
        self.clock.take()
        shard = ShardInProgress(context, self._plan_of(context), unit_index(task.unit))
        remaining = shard.remaining()
        if len(remaining) < shard.size:
            emit(Resumed(task.unit, shard.size - len(remaining)))
        fault("worker.began")
        records = self._records(remaining, task, emit)
        try:
            for record in records:
                fault("worker.made")
                with self.clock.stage("commit"):
                    shard.add(record)
                    if task.careful:
                        shard.commit()
                emit(Done(record.ref.key, image_done(record, task.unit)))
                fault("worker.reported")
                if should_stop():
                    break
        finally:
            records.close()
            shard.commit()
        return Stopped(task.unit, shard.complete, self.clock.take())

    def _records(
        self, refs: list[ImageRef], task: Task[JobContext], emit: Emit[ImageDone, StageSeconds]
    ) -> Generator[ImageRecord]:
        if not task.careful:
            records = self.pipeline.run(refs)
            try:
                for ref in refs:
                    emit(Began(ref.key))
                    yield next(records)
            finally:
                records.close()
            return
        for ref in refs:
            if ref.key in task.given_up:
                yield _given_up(ref, task.given_up[ref.key])
            else:
                emit(Began(ref.key))
                yield from self.pipeline.run([ref])

    def _plan_of(self, context: JobContext) -> RunPlan:
        if self._plan is None or self._plan.rows_digest != context.rows_digest:
            self._plan = open_run_plan(context.out)
        return self._plan


def image_done(record: ImageRecord, unit: str = "") -> ImageDone:
    """The event that is told of a record while the work goes on."""
    logprobs = [found.caption.logprob for found in record.regions]
    return ImageDone(
        unit,
        record.ref.key,
        record.status,
        len(record.regions),
        record.error_code,
        record.error,
        sum(logprobs) / len(logprobs) if logprobs else None,
    )


def _given_up(ref: ImageRef, reason: GiveUp) -> ImageRecord:
    return ImageRecord(ref, "failed", error_code=reason, error=WHY[reason])


def _at_most_every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def act() -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            action()

    return act
