"""One captioning run, from a request to a dataset: `caption_corpus` is `sca caption`.

The road: what the run in the output and the model settle, the request checked as a whole, the
first worker started while the sources are listed, the folder held, the plan made or followed, the
missing shards made, the exports written. Nothing is printed; listeners are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sca_batch.dataset.coco import export_coco
from sca_batch.dataset.shards import RUN_FILE, read_run
from sca_batch.errors import EXIT_BUG, EXIT_LEFTOVERS, EXIT_STOPPED, ScaError
from sca_batch.job.deadline import Deadline
from sca_batch.job.domain import DomainWatch
from sca_batch.job.drive import Tally, finished_shards, run_job
from sca_batch.job.events import (
    EngineChosen,
    Event,
    Exporting,
    Finished,
    ImageDone,
    Listener,
    Planned,
    SourcesChanged,
    StageSeconds,
    StoppingSoon,
    ignore,
)
from sca_batch.job.metrics import Metrics
from sca_batch.job.request import CaptionRequest, Failures, ModelReport
from sca_batch.job.run import (
    COCO_FILE,
    SUMMARY_FILE,
    Run,
    open_run,
    refuse_foreign_folder,
    remove_run,
)
from sca_batch.job.shard import JobContext
from sca_batch.job.sources import (
    addresses,
    default_output,
    follow_sources,
    list_again,
    list_sources,
    refuse_other_sources,
)
from sca_batch.job.summary import write_summary
from sca_batch.job.update import source_changes
from sca_batch.plan.plan import Plan, plan_refs
from sca_batch.plan.run_plan import open_run_plan
from sca_batch.plan.sources import refuse_output_inside
from sca_batch.records import ImageRecord, Json, JsonObject
from sca_batch.runners.local import LocalRunner
from sca_batch.runners.protocol import InlineRunner
from sca_batch.storage.lock import locked
from sca_batch.storage.stores import AnyPath, any_path

if TYPE_CHECKING:
    from sca_batch.job.worker import ShardWorker

__all__ = ["Outcome", "Preview", "caption_corpus", "caption_images", "preview_corpus"]

# What a worker needs; loaded once by the process that workers are forked from.
PRELOAD = ("sca_batch.job.load", "sca_batch.runners.serve")

# Options that mean nothing where nothing is written.
_OF_A_DATASET = {
    "commit_every", "image_timeout", "metrics_file", "overwrite", "retry_failed", "shard_size",
    "shard_timeout", "time_limit", "update", "verify_content", "workers",
}  # fmt: skip

_Local = LocalRunner[JobContext, ImageDone, StageSeconds, ModelReport]
_Inline = InlineRunner[JobContext, ImageDone, StageSeconds, ModelReport]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run. `planned` counts its images, `tally` what this session did.

    `lock_lost` says that another run has taken the output over, on a store; no worker could start
    on `devices_lost`. `left_out` images are listed now and not part of the run, since no update
    was asked for.
    """

    out: AnyPath
    planned: int
    tally: Tally
    allowed: Failures
    lock_lost: bool = False
    devices_lost: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def complete(self) -> bool:
        """Every image has a record."""
        return not self.tally.stopped and not self.tally.lost

    @property
    def exit_code(self) -> int:
        """The command line's exit code; docs/NIGHTLY.md has the contract."""
        if self.lock_lost or self.tally.stopped:
            return EXIT_STOPPED
        if any(lost.is_bug for lost in self.tally.lost):
            return EXIT_BUG
        few = self.allowed.allow(self.tally.failures.total(), self.planned)
        whole = self.complete and not self.devices_lost and not self.left_out
        return 0 if few and whole else EXIT_LEFTOVERS


@dataclass(frozen=True, slots=True)
class Preview:
    """A request as it would be done: its options, its images, and where they go.

    Of a run that is there already: how many images are `planned`, how many of them have a record,
    and what an update would find.
    """

    request: CaptionRequest
    plan: Plan
    out: AnyPath | None
    planned: int = 0
    done: int = 0
    changes: SourcesChanged | None = None


def caption_corpus(
    request: CaptionRequest,
    *,
    listen: Listener = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Starts the run that is asked for, or goes on with the one that is in the output.

    `listen` is told the events of `sca_batch.job.events`, in this thread; `should_stop` is asked
    between images, and what is done by then is kept.

    Raises:
        ScaError: before anything is written or removed, for a request that cannot be met; later
            for outputs that cannot be written: its `exit_code` says which.
    """
    deadline = Deadline(request.running.time_limit)
    out = output_of(request)
    request = _settled(request, out)
    tellers: list[Listener] = [listen]
    if request.running.metrics_file is not None:
        tellers.append(Metrics(request.running.metrics_file))

    def tell(event: Event) -> None:
        for teller in tellers:
            teller(event)

    with _runner(request) as runner:
        runner.start()  # the first worker loads its model while the sources are listed
        is_fresh = _is_fresh(request, out)
        plan = list_sources(request) if is_fresh else None
        listed = None if is_fresh else list_again(request, tell)
        report = runner.about()
        request = request.with_engine(report)
        # Workers that start from here on take what the first one found, and say nothing of it.
        runner.make_worker = _MakeWorker(request, runner.workers)
        tell(EngineChosen(report.engine, report.engine_why))
        with locked(out) as lock:
            if request.existing.overwrite:
                remove_run(out)
            run = open_run(
                out,
                make_plan=lambda: list_sources(request) if plan is None else plan,
                content=request.content(report),
                settings={
                    "sources": list[Json](addresses(request.source.names)),
                    **request.informative(report),
                },
                shard_size=request.batching.shard_size,
            )
            left_out = 0
            if not is_fresh:
                run, left_out = follow_sources(run, request, listed, tell)
            tell(Planned(len(run.plan)))
            watch = DomainWatch(request.model.model, report.domain)
            tally = run_job(
                run,
                runner,
                commit_every_s=request.running.commit_every,
                listen=partial(_hear, tell, deadline, watch),
                should_stop=partial(_must_stop, tell, deadline, lambda: lock.lost or should_stop()),
            )
            tell(Exporting())
            outcome = Outcome(
                out=out,
                planned=len(run.plan),
                tally=tally,
                allowed=request.running.max_failures,
                lock_lost=lock.lost,
                devices_lost=runner.retired,
                left_out=left_out,
            )
            if not lock.lost:
                write_summary(out / SUMMARY_FILE, _summary(run, outcome, watch, runner.workers))
                if "coco" in request.output.formats and not tally.stopped:
                    export_coco(out, out / COCO_FILE)
            tell(Finished(outcome.complete))
            return outcome


def caption_images(request: CaptionRequest, *, listen: Listener = ignore) -> Iterator[ImageRecord]:
    """The records of a request one after the other, made in this process; nothing is written.

    Raises:
        ScaError: for a request that cannot be met.
    """
    from sca_batch.job.load import load_pipeline
    from sca_batch.job.worker import image_done

    idle = sorted(request.given & _OF_A_DATASET)
    if idle:
        raise ScaError(
            f"--{idle[0].replace('_', '-')} has no effect where lines are printed and no dataset "
            "is written; leave it out, or name a folder with -o"
        )
    request = _settled(request, None)
    plan = list_sources(request)
    pipeline, report = load_pipeline(request, request.model.device)
    listen(EngineChosen(report.engine, report.engine_why))
    listen(Planned(len(plan)))
    watch = DomainWatch(request.model.model, report.domain)
    deadline = Deadline(None)
    with closing(pipeline.run(plan_refs(plan))) as records:
        for record in records:
            yield record
            _hear(listen, deadline, watch, image_done(record))
    listen(Finished(True))


def preview_corpus(request: CaptionRequest) -> Preview:
    """A preview of `caption_corpus`. Sources are listed; nothing is loaded or written.

    Raises:
        ScaError: for a request that cannot be met.
    """
    out = None if "jsonl" in request.output.formats else output_of(request)
    request = _settled(request, out)
    plan = list_sources(request)
    if out is None or _is_fresh(request, out):
        return Preview(request, plan, out)
    run = Run(out, open_run_plan(out), read_run(out)["fingerprint"])
    done = sum(run.plan.rows_of(int(i)) for i in np.flatnonzero(finished_shards(run)))
    return Preview(request, plan, out, len(run.plan), done, source_changes(run.plan, plan))


def output_of(request: CaptionRequest) -> AnyPath:
    """The folder or the store that the dataset goes to.

    Raises:
        ScaError: for an output that cannot hold one.
    """
    if "jsonl" in request.output.formats:
        raise ScaError("--format jsonl prints lines and writes no dataset")
    if request.output.output == "-":
        raise ScaError("-o - prints lines; add --format jsonl")
    text = request.output.output or default_output(request.source.names)
    if text.startswith("memory://") and request.running.workers != 0:
        raise ScaError(f"-o {text}: memory:// ends with its process, and workers have their own")
    return any_path(text)


def _is_fresh(request: CaptionRequest, out: AnyPath) -> bool:
    return request.existing.overwrite or not (out / RUN_FILE).is_file()


def _settled(request: CaptionRequest, out: AnyPath | None) -> CaptionRequest:
    """The request with what the run in the output and the model say; it is checked as a whole.

    Raises:
        ScaError: for a request that cannot be met, as far as that can be told without its model.
    """
    from sca_batch.model.names import config_at_hand
    from sca_batch.regions.settings import AutomaticMaskSettings

    if not request.source.names:
        raise ScaError("no source; name a folder, images, a pattern or a manifest")
    root = request.source.read.root
    if root is not None and not root.is_dir():
        raise ScaError(f"--root {root}: no such folder")
    if out is not None:
        refuse_output_inside(request.source.names, out)
        refuse_foreign_folder(out)
        if not _is_fresh(request, out):
            settings = read_run(out).get("settings", {})
            refuse_other_sources(out, settings.get("sources", request.source.names), request)
            kept = dict(settings.get("options", {}))
            if request.existing.update:
                kept.pop("limit", None)  # an update looks at all there is
            request = request.resolved(kept)
    config = config_at_hand(request.model.model)
    if config is not None and config.automatic_masks:
        wanted = AutomaticMaskSettings.for_model(config)
        request = request.resolved({n: getattr(wanted, n) for n in config.automatic_masks})
    return request


@dataclass(frozen=True)
class _MakeWorker:
    """Loads the model in a worker's process."""

    request: CaptionRequest
    workers: int

    def __call__(self, device: str) -> ShardWorker:
        from sca_batch.job.load import load_worker

        return load_worker(self.request, device, self.workers)


def _runner(request: CaptionRequest) -> _Local | _Inline:
    """One worker per device, or as many as are asked for, spread over them."""
    running, device = request.running, request.model.device
    if running.workers == 0:
        idle = sorted(request.given & {"image_timeout", "shard_timeout"})
        if idle:
            raise ScaError(
                f"--{idle[0].replace('_', '-')} takes a worker process to end: --workers 1"
            )
        return InlineRunner(_MakeWorker(request, 1), device)
    gpus = _gpus() if device in ("auto", "cuda") else 0
    devices = [f"cuda:{i}" for i in range(gpus)] if gpus > 1 else [device]
    count = running.workers or len(devices)
    return LocalRunner(
        _MakeWorker(request, count),
        [devices[i % len(devices)] for i in range(count)],
        item_timeout_s=running.image_timeout or None,
        unit_timeout_s=running.shard_timeout or None,
        start_method=running.start_method,
        preload=PRELOAD,
    )


def _gpus() -> int:
    """The number of NVIDIA GPUs. torch takes seconds to load: only where there is a driver."""
    if not any(map(Path.exists, map(Path, ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")))):
        return 0
    import torch

    return torch.cuda.device_count()


def _hear(tell: Listener, deadline: Deadline, watch: DomainWatch, event: Event) -> None:
    tell(event)
    if isinstance(event, ImageDone):
        deadline.step()
        if (outside := watch.look(event)) is not None:
            tell(outside)


def _must_stop(tell: Listener, deadline: Deadline, asked: Callable[[], bool]) -> bool:
    if asked():
        return True
    was_near = deadline.is_near
    if deadline.look() and not was_near:
        tell(StoppingSoon())
    return deadline.is_near


def _summary(run: Run, outcome: Outcome, watch: DomainWatch, workers: int) -> JsonObject:
    """The session in numbers; `failures` counts the whole dataset's, the rest is this session's."""
    tally = outcome.tally
    seconds, stages = tally.seconds, tally.stages
    summary: JsonObject = {
        "complete": outcome.complete,
        "images_planned": outcome.planned,
        "images_gone": len(run.plan.gone_rows),
        "images_done_before": tally.resumed_images,
        "images": tally.images,
        "regions": tally.regions,
        "failures": dict(tally.failures.most_common()),
        "shards_left_over": [lost.shard for lost in tally.lost],
        "devices_lost": list(outcome.devices_lost),
        "seconds": round(seconds, 3),
        "images_per_s": round(tally.images / seconds, 4) if seconds else 0.0,
        "workers": workers,
        "utilisation": round(stages.busy_s / (seconds * workers), 4) if seconds else 0.0,
        "stages": stages.table(),
    }
    if watch.domain is not None:
        summary["images_outside_domain"] = watch.outside
    return summary
