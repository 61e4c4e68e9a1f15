"""The loop of the paper's recipes: one GPU, many, or a CPU; it goes on after any stop."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sca_batch.data.captioned import CaptionedImages, read_captioned
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.train.caption_recipes import CaptionRecipe, check_recipe
from sca_batch.train.caption_run import (
    CaptionRun,
    Report,
    encode,
    gathered,
    last_checkpoint,
    open_accelerator,
    read_sources,
    run_batches,
    save_run,
    start_run,
)
from sca_batch.train.checkpoints import Checkpoints
from sca_batch.train.logs import listed, row_line
from sca_batch.train.optimization import cosine_with_warmup
from sca_batch.train.region_batches import BatchFailure
from sca_batch.train.region_samples import CaptionBatch
from sca_batch.train.start import copy_tokenizer
from sca_batch.train.tracking import Tracking
from sca_batch.train.validation import Validated, caption_images, paint, score_captions

__all__ = ["train_captioner"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def train_captioner(
    recipe: CaptionRecipe,
    manifests: Mapping[str, Path],
    out: Path,
    *,
    resume: bool,
    report: Report,
    validation: Path | None = None,
    cache: Path | None = None,
    trackers: Sequence[str] = (),
    cpu: bool = False,
    stop_after: int | None = None,
) -> None:
    """Trains `recipe` into `out`, and leaves a model in the published format in `out/model`.

    `manifests` has one manifest for each data set of the recipe. `out` gets `log.jsonl`,
    `checkpoints` and `pictures`. With `resume` it goes on from the last checkpoint with the losses
    of an unbroken run; `stop_after` stops, saved, before that step. With `cache`, embeddings are
    kept in that folder and the encoder runs once per image.

    Raises:
        ScaError: saying what is wrong with the request, the data or the disk; a loss is not
            finite. The last checkpoint is kept.
    """
    check_recipe(recipe)
    accelerator = open_accelerator(recipe, cpu=cpu)
    say: Report = report if accelerator.is_main_process else _silent
    if recipe.warning:
        say(f"Warning: {recipe.warning}")
    with _room_on_disk(out, resume):
        sources = read_sources(recipe, manifests, say)
        held_out = None if validation is None else read_captioned(validation)
        run = start_run(recipe, out, accelerator, sources, resume=resume, cache=cache, report=say)
        last = recipe.last_step if stop_after is None else min(stop_after, recipe.last_step)
        _steps(run, sources, held_out, last, trackers)
        if run.step == recipe.last_step and accelerator.is_main_process:
            save_checkpoint(run.model, out / "model")
            copy_tokenizer(out / "tokenizer", out / "model")
            say(f"Wrote the trained model to {out / 'model'}")
    accelerator.wait_for_everyone()


def _steps(
    run: CaptionRun,
    sources: Sequence[CaptionedImages],
    held_out: CaptionedImages | None,
    last: int,
    trackers: Sequence[str],
) -> None:
    recipe, accelerator = run.recipe, run.accelerator
    if run.step >= last:
        return
    batches = run_batches(run, sources, last)
    tracking = None
    if accelerator.is_main_process:
        tracking = Tracking(run.out, run.step, trackers, asdict(recipe))
    begun = time.monotonic()
    try:
        while run.step < last:
            step = run.step
            row, keys = _one_step(run, batches)
            if not math.isfinite(row["loss"]):
                raise ScaError(
                    f"step {step}: the loss is {row['loss']} on images {', '.join(keys)}. "
                    f"{last_checkpoint(run)}. Lower lr or look at these images, then --resume"
                )
            run.step = step + 1
            now = time.monotonic()
            seconds, begun = now - begun, now
            row["images_per_s"] = recipe.images_per_step / seconds
            row["regions_per_s"] = row.pop("regions") / seconds
            if run.step % recipe.report_every == 0 or run.step == last:
                run.report(row_line(row))
            score = None
            if held_out is not None and (
                run.step % recipe.validate_every == 0 or run.step == recipe.last_step
            ):
                scores = _validate(run, held_out, tracking)
                row |= {"validation": scores}
                score = scores["cider_d"]
                run.report(f"step {step}, validation: {listed(scores)}")
                begun = time.monotonic()
            if tracking is not None:
                tracking.row(row)
            if score is not None or run.step % recipe.checkpoint_every == 0 or run.step == last:
                save_run(run, score)
    finally:
        if tracking is not None:
            tracking.__exit__(None, None, None)


def _one_step(
    run: CaptionRun, batches: Iterator[CaptionBatch | BatchFailure]
) -> tuple[dict[str, Any], list[str]]:
    """Forward and backward over all of a step's batches, then the optimizer."""
    recipe, accelerator, step = run.recipe, run.accelerator, run.step
    lr = cosine_with_warmup(
        step, lr=recipe.learning_rate, steps=recipe.steps, warmup_steps=recipe.warmup_steps
    )
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    total = torch.zeros((), device=accelerator.device)
    keys: list[str] = []
    regions = 0
    for micro in range(run.micro_batches):
        batch = next(batches)
        if isinstance(batch, BatchFailure):
            if step:  # what was learnt until here is not lost with the image
                save_run(run, None)
            raise ScaError(f"step {step}: {batch.message}")
        batch = batch.to(accelerator.device)
        keys += batch.keys
        regions += len(batch.boxes_R4)
        # Dropout follows from the seed and the batch's number: there is no generator to save, and
        # it is the same however many devices share the step.
        number = micro * accelerator.num_processes + accelerator.process_index
        seed = np.random.SeedSequence([recipe.seed, step, number])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        is_last = micro + 1 == run.micro_batches
        with _synchronising(run, is_last):
            loss = run.step_module(batch, _cached_embedding(run, batch))
            accelerator.backward(loss / run.micro_batches)
        total += loss.detach() / run.micro_batches
    mean = float(accelerator.reduce(total, "mean"))
    if not math.isfinite(mean):
        keys = gathered(accelerator, keys)
        return {"loss": mean}, keys
    norm = accelerator.clip_grad_norm_(list(run.trainable.values()), recipe.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    counted = torch.tensor(float(regions), device=accelerator.device)
    row = {
        "step": step,
        "loss": mean,
        "lr": lr,
        "grad_norm": float(norm),
        "regions": float(accelerator.reduce(counted, "sum")),
    }
    return row, keys


@contextmanager
def _synchronising(run: CaptionRun, is_last: bool) -> Iterator[None]:
    """Gradients are added up over devices once a step."""
    if is_last:
        yield
    else:
        with run.accelerator.no_sync(run.step_module):
            yield


def _cached_embedding(run: CaptionRun, batch: CaptionBatch) -> Tensor | None:
    """With a cache, the batch's embeddings: those that were there, and new ones that are kept."""
    if run.cache is None:
        return None
    new: list[Tensor] = []
    if batch.pixels_B3SS is not None:
        with torch.no_grad(), run.accelerator.autocast():
            new = list(encode(run.model, batch))
    found: list[Tensor] = []
    for known, name, size_hw in zip(
        batch.embeddings, batch.cache_names, batch.sizes_hw, strict=True
    ):
        if known is None:
            known = new.pop(0)
            assert name is not None
            run.cache.save(name, known, size_hw)
        found.append(known)
    return torch.stack(found)


def _validate(
    run: CaptionRun, held_out: CaptionedImages, tracking: Tracking | None
) -> dict[str, float]:
    """Every device captions its share of the images; the scores are over all of them."""
    recipe, accelerator = run.recipe, run.accelerator
    # Spread over the whole split, and the same ones every time.
    count = min(recipe.validation_images, len(held_out))
    chosen = np.linspace(0, len(held_out) - 1, count).round().astype(int).tolist()
    own = chosen[accelerator.process_index :: accelerator.num_processes]
    with accelerator.autocast():
        part = caption_images(run.model, held_out, own, num_beams=recipe.validation_beams)
    parts: list[Validated] = gathered(accelerator, [part])
    captions = [row for each in parts for row in each.captions]
    tokens = max(sum(each.num_tokens for each in parts), 1)
    if tracking is not None:
        for number, index in enumerate(chosen[: recipe.sample_pictures]):
            tracking.picture(run.step, number, paint(held_out, index, captions))
    return {
        "loss": sum(each.loss_sum for each in parts) / tokens,
        **score_captions(captions),
        "regions": float(len(captions)),
    }


@contextmanager
def _room_on_disk(out: Path, resume: bool) -> Iterator[None]:
    """A full disk stops a run with what is there and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        steps = Checkpoints(out).steps()
        kept = f"the checkpoint of step {steps[-1]:,} is whole" if steps else "no checkpoint yet"
        raise ScaError(
            f"{error.filename or out}: {error.strerror}; {kept}. Make room, then "
            f"{'the same command' if resume else 'add --resume'}"
        ) from None


def _silent(line: str) -> None:
    """What processes beside the main one report."""
