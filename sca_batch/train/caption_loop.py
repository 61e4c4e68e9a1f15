"""The paper's recipes from a command's arguments to the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.manifests.references import CaptionedImages, read_captioned
from sca_batch.train.caption_task import CaptionTask, run_settings
from sca_batch.train.checkpoints import Checkpoints
from sca_batch.train.loop import Export, Outcome, room_on_disk, run_task
from sca_batch.train.processes import open_accelerator
from sca_batch.train.recipes import CaptionRecipe, check_recipe
from sca_batch.train.start import starting_model
from sca_batch.train.task import Report

__all__ = ["train_captioner"]


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
    should_stop: Callable[[], bool] | None = None,
    stop_after: int | None = None,
    export: Export = "last",
) -> Outcome:
    """Trains `recipe` into `out`, and leaves a model in the published format in `out/model`.

    `manifests` has one manifest for each data set of the recipe. With `cache`, embeddings are kept
    in that folder and the encoder runs once per image. The rest is as `engine.run_task` says.

    Raises:
        ScaError: saying what is wrong with the request, the data or the disk; a loss is not
            finite. The last checkpoint is kept.
    """
    check_recipe(recipe)
    settings = run_settings(recipe)
    accelerator = open_accelerator(settings, cpu=cpu)
    is_main = accelerator.is_main_process
    say: Report = report if is_main else _silent
    if recipe.warning:
        say(f"Warning: {recipe.warning}")
    sources = _read_sources(recipe, manifests, say)
    held_out = None if validation is None else read_captioned(validation)
    if not resume:
        Checkpoints(out).refuse_any()
    with room_on_disk(out, resume):
        out.mkdir(parents=True, exist_ok=True)
        model = starting_model(recipe, out / "tokenizer", write=is_main)
    accelerator.wait_for_everyone()
    task = CaptionTask(
        recipe, model, sources, tokenizer=out / "tokenizer", held_out=held_out, cache=cache
    )
    return run_task(
        task,
        settings,
        out,
        accelerator=accelerator,
        resume=resume,
        report=report,
        trackers=trackers,
        config=asdict(recipe),
        should_stop=should_stop,
        stop_after=stop_after,
        export=export,
    )


def _read_sources(
    recipe: CaptionRecipe, manifests: Mapping[str, Path], report: Report
) -> list[CaptionedImages]:
    names = [part.name for part in recipe.data]
    if set(names) != manifests.keys():
        options = " ".join(f"--data {name}=MANIFEST" for name in names)
        raise ScaError(f"recipe {recipe.name} trains on {', '.join(names)}; expected {options}")
    sources = [read_captioned(manifests[name]) for name in names]
    for name, source in zip(names, sources, strict=True):
        left = ", ".join(f"{count:,} {what}" for what, count in source.left_out.items() if count)
        rest = f" (left out, nothing to train on: {left})" if left else ""
        report(f"{name}: {len(source):,} images, {source.num_regions:,} regions{rest}")
    return sources


def _silent(line: str) -> None:
    """What processes beside the main one report."""
