"""The worker of a job: takes up a shard, captions its images, commits."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sca_batch.faults import fault
from sca_batch.job.shard import JobContext, ShardInProgress
from sca_batch.pipeline import Pipeline
from sca_batch.plan.run_plan import CutPlan, open_plan
from sca_batch.records import ImageRecord, ImageRef, Status
from sca_batch.runners import Alive, Began, Done, Emit, GiveUp, Stopped, Task

__all__ = ["ImageDone", "ShardWorker", "TakenUp", "image_done", "unit_index", "unit_name"]

ALIVE_EVERY_S = 0.5
WHY = {
    "killed_worker": "the process that worked on this image alone died, again and again",
    "timeout": "this image alone took longer than --image-timeout",
}


@dataclass(frozen=True, slots=True)
class ImageDone:
    """What the supervisor hears of an image; the record itself stays with the worker."""

    unit: str
    key: str
    status: Status
    regions: int
    error_code: str | None = None
    error: str | None = None
    logprob: float | None = None  # the mean of its captions', in nats per token


@dataclass(frozen=True, slots=True)
class TakenUp:
    """How many records of a shard were there already."""

    unit: str
    images: int


@dataclass(slots=True)
class StageClock:
    """How long each stage took, in seconds, one entry per image or batch."""

    beat: Callable[[], None] = lambda: None
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - began)
        # Threads that decode ahead must not vouch for the image that the model is at.
        if threading.current_thread() is threading.main_thread():
            self.beat()


def unit_name(index: int) -> str:
    return f"shard-{index:06d}"


def unit_index(unit: str) -> int:
    return int(unit.removeprefix("shard-"))


class ShardWorker:
    """One pipeline, and the shards that it is given one after the other."""

    def __init__(self, pipeline: Pipeline, about: Any = None) -> None:
        self.pipeline = pipeline
        self._about = about
        self._plan: CutPlan | None = None

    def about(self) -> Any:
        return self._about

    def run(self, task: Task, emit: Emit, should_stop: Callable[[], bool]) -> Stopped:
        """Captions what is left of a shard. Whatever ends it, what is done is committed."""
        context: JobContext = task.context
        clock = StageClock(_at_most_every(ALIVE_EVERY_S, lambda: emit(Alive())))
        self.pipeline.watch = clock.stage
        shard = ShardInProgress(context, self._plan_of(context), unit_index(task.unit))
        remaining = shard.remaining()
        if len(remaining) < shard.size:
            emit(Done("", TakenUp(task.unit, shard.size - len(remaining))))
        fault("worker.began")
        records = self._records(remaining, task, emit)
        try:
            for record in records:
                fault("worker.made")
                with clock.stage("commit"):
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
        return Stopped(task.unit, shard.complete, dict(clock.seconds))

    def _records(self, refs: list[ImageRef], task: Task, emit: Emit) -> Generator[ImageRecord]:
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

    def _plan_of(self, context: JobContext) -> CutPlan:
        if self._plan is None or self._plan.rows_digest != context.rows_digest:
            self._plan = open_plan(context.out)
        return self._plan


def image_done(record: ImageRecord, unit: str = "") -> ImageDone:
    """What is said of a record while the work goes on."""
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
