"""The loop of every recipe: one GPU, many, or a CPU; it goes on after any stop.

`run_task` takes a task through its steps; `task.Task` says what that is, and `CaptionTask` is one.
To train something else, write another:

    settings = RunSettings(recipe, lr=1e-4, images_per_step=8, ...)
    accelerator = open_accelerator(settings, cpu=False)
    task = MyTask(...)
    run_task(task, settings, out, RunOptions(report=print), accelerator)

`out` gets `log.jsonl`, `checkpoints`, `pictures`, `curves.png` and at the end `model`.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from sca_batch.errors import NoRoomError, OutputError, ScaError, TrainingError
from sca_batch.train.processes import gathered, main_only, summed
from sca_batch.train.request import RunRequest
from sca_batch.train.sharding import make_whole, whole_everywhere
from sca_batch.train.state import Checkpoints, RunState, save_state, start_state, weights_of_step
from sca_batch.train.task import Batch, BatchFailure, Report, RunSettings, Task
from sca_batch.train.tracking import Row, Tracking, draw_curves, listed, row_line

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Export", "Outcome", "RunOptions", "room_on_disk", "run_task"]

Export = Literal["last", "best"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A loss scaler starts at 65,536 and halves each time: this many in a row are no search for a scale.
_MOST_SKIPPED = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run: at which step, and whether it was told to stop before its end."""

    step: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The wishes of whoever starts a run, beside its recipe.

    `run` has what a command asks: with its `resume` a run goes on from the last checkpoint with the
    losses of an unbroken one. `should_stop` is asked on every process once a step, and one that
    says so stops all of them with a checkpoint; `stop_after` does so before that step. `export`
    chooses whose weights `out/model` gets: those of the last step, or of the best validation.
    """

    report: Report
    run: RunRequest = field(default_factory=RunRequest)
    should_stop: Callable[[], bool] = lambda: False
    stop_after: int | None = None
    export: Export = "last"


def run_task(
    task: Task, settings: RunSettings, out: Path, options: RunOptions, accelerator: Accelerator
) -> Outcome:
    """Trains to the end of the schedule, or until it is told to stop, and exports the model.

    Raises:
        TrainingError: a loss or a gradient is not finite, or a batch cannot be made; with the step
            and what was in the batch. The last checkpoint is kept.
        OutputError: the disk is full.
        ScaError: the folder holds a run and `resume` is False, or it holds another one.
    """
    say = main_only(options.report, accelerator)
    with room_on_disk(out, options.run.resume):
        state = start_state(task, settings, out, accelerator, resume=options.run.resume, report=say)
        end = settings.steps
        if options.stop_after is not None:
            end = min(options.stop_after, end)
        stopped = False
        if state.step < end or state.unvalidated is not None:
            tracking: AbstractContextManager[Tracking | None] = nullcontext()
            if accelerator.is_main_process:
                # A row that waits for its scores may have been logged just before the end.
                first = state.step - (state.unvalidated is not None)
                tracking = Tracking(out, first, options.run.trackers, settings.recipe)
            with tracking as track:
                stopped = _Loop(task, settings, state, track, say, options.should_stop).run(end)
            if accelerator.is_main_process:
                draw_curves(out / "log.jsonl", out / "curves.png")
        if state.step == settings.steps and not stopped:
            _export(state, task, out, options.export, say)
    accelerator.wait_for_everyone()
    return Outcome(state.step, stopped)


@dataclass
class _Loop:
    """The steps of one process between its start and its end."""

    task: Task
    settings: RunSettings
    state: RunState
    track: Tracking | None
    say: Report
    should_stop: Callable[[], bool]
    skipped: int = 0  # steps in a row whose gradients overflowed

    @property
    def accelerator(self) -> Accelerator:
        return self.state.accelerator

    @property
    def micro_batches(self) -> int:
        """Batches that one device sees in a step."""
        devices = int(self.accelerator.num_processes)
        return self.settings.images_per_step // (devices * self.settings.images_per_device)

    def run(self, end: int) -> bool:
        """Steps until `end`; whether it was told to stop before."""
        state, recipe = self.state, self.settings.recipe
        devices, own = self.accelerator.num_processes, self.accelerator.process_index
        # Counted over all devices, so that a step has the same images on one device as on eight.
        first, last = (step * self.micro_batches * devices for step in (state.step, end))
        batches = self.task.batches(range(first + own, last, devices)) if first < last else iter([])
        begun = time.monotonic()
        while True:
            if summed(self.accelerator, [float(self.should_stop())])[0]:
                self._save()
                return True
            if state.unvalidated is not None:
                if not self._validate(state.unvalidated):
                    self._save()
                    return True
                begun = time.monotonic()
            if state.step >= end:
                break
            row = self._step(batches)
            now = time.monotonic()
            for name in ("images", "regions"):
                if name in row:
                    row[f"{name}_per_s"] = row.pop(name) / (now - begun)
            begun = now
            if state.step % recipe.report_every == 0 or state.step == end:
                self.say(row_line(row))
            validates = state.step % recipe.validate_every == 0 or state.step == self.settings.steps
            if validates and self.task.can_validate:
                state.unvalidated = row  # logged with its scores
                self._save()  # whatever goes wrong in a validation, no step is lost
                continue
            if self.track is not None:
                self.track.row(row)
            if state.step % recipe.checkpoint_every == 0:
                self._save()
        self._save()
        return False

    def _step(self, batches: Iterator[Batch | BatchFailure]) -> Row:
        """Forward and backward over all of a step's batches, then the optimizer."""
        state, settings, accelerator = self.state, self.settings, self.accelerator
        step, optimizer = state.step, state.optimizer
        lr = settings.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        made = self._made(batches)
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, float] = {}
        for micro, batch in enumerate(made):
            batch = batch.to(accelerator.device)
            # What is random inside the model follows from the seed and the batch's number: there
            # is no generator to save, and it is the same however many devices share the step.
            number = micro * accelerator.num_processes + accelerator.process_index
            seed = np.random.SeedSequence([settings.recipe.seed, step, number])
            torch.manual_seed(int(seed.generate_state(1)[0]))
            with self._synchronising(micro + 1 == self.micro_batches):
                losses = state.module(batch)
                accelerator.backward(losses.total / self.micro_batches)
            for name, value in {"loss": losses.total, **losses.parts}.items():
                share = value.detach().float() / self.micro_batches
                sums[name] = sums[name] + share if name in sums else share
            for name, count in batch.counts.items():
                counts[name] = counts.get(name, 0.0) + count
        both = torch.stack(list(sums.values())).tolist() + list(counts.values())
        both = summed(accelerator, both)
        devices = accelerator.num_processes
        row: Row = {"step": step}
        row |= {name: value / devices for name, value in zip(sums, both, strict=False)}
        if not math.isfinite(row["loss"]):
            raise self._not_finite(f"the loss is {row['loss']}", made)
        parameters = list(state.trainable.values())
        norm = float(accelerator.clip_grad_norm_(parameters, settings.recipe.clip_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:
            raise self._not_finite(f"the gradient's norm is {norm}", made)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if accelerator.scaler is not None and optimizer.step_was_skipped:
            self.skipped += 1
            if self.skipped > _MOST_SKIPPED:
                raise self._not_finite(f"{self.skipped} gradients in a row overflow", made)
        else:
            self.skipped = 0
        state.step = step + 1
        row |= {"lr": lr, "grad_norm": norm}
        totals = (round(count) for count in both[len(sums) :])
        return row | dict(zip(counts, totals, strict=True))

    def _made(self, batches: Iterator[Batch | BatchFailure]) -> list[Batch]:
        """The batches of a step; one that cannot be made stops all processes."""
        asked = [next(batches) for _ in range(self.micro_batches)]
        failed = [batch.message for batch in asked if isinstance(batch, BatchFailure)]
        if not summed(self.accelerator, [float(len(failed))])[0]:
            return [batch for batch in asked if not isinstance(batch, BatchFailure)]
        messages = gathered(self.accelerator, failed)
        if self.state.step:  # what was learnt until here is not lost with the image
            self._save()
        self.accelerator.wait_for_everyone()
        raise TrainingError(f"step {self.state.step}: {messages[0]}")

    def _not_finite(self, what: str, made: Sequence[Batch]) -> TrainingError:
        keys = gathered(self.accelerator, [key for batch in made for key in batch.keys])
        steps = self.state.checkpoints.steps()
        kept = "There is no checkpoint yet"
        if steps:
            kept = f"The checkpoint of step {steps[-1]:,} is kept"
        return TrainingError(
            f"step {self.state.step}: {what} on images {', '.join(keys)}. "
            f"{kept}. Lower lr or look at these images, then "
            "--resume"
        )

    def _synchronising(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are added up over devices once a step."""
        if is_last:
            return nullcontext()
        held_back: AbstractContextManager[None] = self.accelerator.no_sync(self.state.module)
        return held_back

    def _validate(self, row: Row) -> bool:
        """Scores the present weights and logs them with the step's row; False: told to stop."""
        state = self.state
        with whole_everywhere(state.module):
            found = self.task.validate(self.accelerator, self.should_stop)
        if found is None:
            return False
        self.say(f"step {row['step']}, validation: {listed(found.scores)}")
        if self.track is not None:
            for number, picture in enumerate(found.pictures):
                self.track.picture(state.step, number, picture)
            self.track.row(row, found.scores)
        state.unvalidated = None
        self._save(found.scores[self.settings.ranked_by])
        return True

    def _save(self, score: float | None = None) -> None:
        if score is not None or self.state.saved_step != self.state.step:
            save_state(self.task, self.state, score)


def _export(state: RunState, task: Task, out: Path, export: Export, say: Report) -> None:
    """Writes `out/model` with the last step's weights, or with those of the best validation."""
    which = f"step {state.step:,}"
    if export == "best":
        best = state.checkpoints.best()
        if best is None:
            raise ScaError(
                "--export best: nothing was validated; add --validation, or --export last"
            )
        weights_of_step(state, best.step)
        which = f"step {best.step:,}, the best validation ({best.score:.4g})"
    make_whole(state.module)
    if state.accelerator.is_main_process:
        task.export(out / "model")
        say(f"Wrote the model of {which} to {out / 'model'}")


@contextmanager
def room_on_disk(out: Path, resume: bool) -> Iterator[None]:
    """A full disk stops a run with what is there and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        what = f"{error.filename or out}: {error.strerror}"
    except NoRoomError as error:
        what = error.what
    else:
        return
    steps = Checkpoints(out).steps()
    kept = f"the checkpoint of step {steps[-1]:,} is whole" if steps else "no checkpoint yet"
    raise OutputError(
        f"{what}; {kept}. Make room, then {'the same command' if resume else 'add --resume'}"
    )
