"""What runs in other processes during tests: workers that misbehave, and whole jobs to be killed.

Everything obeys the protocols of `sca_batch.runners` and `sca_batch.captioners`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace

from sca_batch.errors import ScaError
from sca_batch.runners import Began, Done, InlineRunner, Stopped


@dataclass(frozen=True)
class MakeBad:
    """Makes a worker for units of ten items; `deeds` says what befalls it at which item.

    With `marks`, a folder, a deed is done once only.
    """

    deeds: tuple[tuple[str, str], ...] = ()
    marks: str | None = None
    at_start: str | None = None

    def __call__(self, device):
        if self.at_start == "refuse":
            raise ScaError("no such model; name another")
        if self.at_start == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at_start == "bug":
            raise ZeroDivisionError("made wrong")
        return BadWorker(dict(self.deeds), self.marks, device)


class BadWorker:
    def __init__(self, deeds, marks, device):
        self.deeds, self.marks, self.device = deeds, marks, device
        self.done = {}

    def about(self):
        return {"device": self.device, "pid": os.getpid()}

    def run(self, task, emit, should_stop):
        for i in range(10):
            item = f"{task.unit}/{i}"
            if item in task.given_up:
                emit(Done(item, task.given_up[item]))
                continue
            emit(Began(item))
            self._deed(item)
            emit(Done(item, "careful" if task.careful else "fine"))
            if should_stop():
                return Stopped(task.unit, i == 9)
        return Stopped(task.unit, True)

    def _deed(self, item):
        deed = self.deeds.get(item)
        if deed is None:
            return
        if self.marks:
            try:
                os.close(os.open(f"{self.marks}/{item.replace('/', '-')}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "abort":
            os.abort()
        elif deed == "exit":
            os._exit(3)
        elif deed == "bug":
            raise ZeroDivisionError("a bug of ours")
        elif deed == "refuse":
            raise ScaError("no space left; free some")
        elif deed == "hang":
            time.sleep(600)
        elif deed == "log":
            logging.getLogger("bad").warning("said by the worker")
        elif deed == "slow":
            time.sleep(0.05)


class MeanCaptioner:
    """Says how bright each region's image is: as cheap as a captioner can be."""

    needs_embedding = False

    def caption(self, images, regions):
        from sca_batch.records import Caption

        return [
            [Caption(f"brightness {image.rgb.mean():.3f} of {i}", -0.5) for i in range(len(given))]
            for image, given in zip(images, regions, strict=True)
        ]


def make_mean_worker(device="cpu"):
    from sca_batch.job import ShardWorker
    from sca_batch.pipeline.settings import BatchSettings
    from sca_batch.pipeline.pipeline import Pipeline
    from sca_batch.regions.settings import RegionSettings

    regions = RegionSettings(source="given")
    # Regions that are given, and a captioner without embeddings: a model is asked for its size.
    model = SimpleNamespace(config=SimpleNamespace(image_size=32), device="cpu")
    return ShardWorker(Pipeline(model, MeanCaptioner(), regions, BatchSettings(caption_batch=2)))


def whole_job(manifest, out, environment, workers=0, shard_size=3, start_method="fork"):
    """A job from the listing to the export, to be run, and killed, in a process of its own."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    from sca_batch import job
    from sca_batch.dataset.coco import export_coco
    from sca_batch.plan.sources import plan_sources
    from sca_batch.runners.local import LocalRunner
    from sca_batch.storage.stores import any_path

    out = any_path(out)
    with job.locked(out):
        run = job.open_run(
            out,
            make_plan=lambda: plan_sources([str(manifest)], is_image=lambda path: True),
            content={"captioner": "mean"},
            settings={},
            shard_size=shard_size,
        )
        stages = job.StageTimes()
        options = {"commit_every_s": 0.0, "on_stages": stages.add}
        if workers:
            with LocalRunner(make_mean_worker, ["cpu"] * workers, start_method=start_method) as r:
                outcome = job.run_job(run, r, **options)
        else:
            outcome = job.run_job(run, InlineRunner(make_mean_worker), **options)
        job.write_summary(out, job.summarize(run, outcome, stages, workers=max(1, workers)))
        export_coco(out, out / job.COCO_FILE)
    assert not outcome.stopped


def answered_job(manifest, out, said):
    """`whole_job` as the command line would end it: a message into the file `said`, a code."""
    try:
        whole_job(manifest, out, {})
    except ScaError as error:
        with open(said, "w") as file:
            file.write(str(error))
        raise SystemExit(error.exit_code) from None
