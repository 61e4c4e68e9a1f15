"""The stages of the bundled model, alone or in a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sca_batch.errors import ScaError
from sca_batch.model.parts import load_sam
from sca_batch.train.caption_task import caption_settings
from sca_batch.train.initial import copy_tokenizer, initial_model, starting_model
from sca_batch.train.loop import Outcome, RunOptions, run_task
from sca_batch.train.processes import open_accelerator
from sca_batch.train.task import Report, Task
from sca_tiny.caption.task import SceneCaptionTask, mixer_from_decoder
from sca_tiny.language.documents import read_corpus, train_tokenizer, write_corpus
from sca_tiny.language.task import LanguageTask, language_settings
from sca_tiny.reading.task import ReadingTask, read_objects, reading_settings, write_objects
from sca_tiny.recipes import LanguageRecipe, ReadingRecipe, SamRecipe, Stage, TinyRecipe
from sca_tiny.sam.task import SamTask, sam_settings
from sca_tiny.scenes.art import TRAIN_STYLES, Art, load_art

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["train_stage", "train_tiny"]


def train_tiny(recipe: TinyRecipe, out: Path, options: RunOptions) -> Outcome:
    """Trains the stages into `out/language`, `sam`, `edges`, `reading` and `caption`, in a row.

    Each leaves its log, curves, checkpoints and model in its folder. A run that is resumed leaves a
    stage alone that has ended, and the next one goes on. The last one's model is the bundled one.

    Raises:
        ScaError: as `loop.run_task` and `art.load_art` say.
    """
    art = load_art(styles=TRAIN_STYLES)
    sam, language_model = str(out / "edges/model"), str(out / "language/model")
    last_of_sam = out / "sam/checkpoints" / f"step-{recipe.sam.steps:08d}.pt"
    stages: tuple[Stage, ...] = (
        recipe.language,
        recipe.sam,
        replace(recipe.edges, start=str(last_of_sam), skipped_batches=recipe.sam.steps),
        replace(recipe.reading, sam=sam, language_model=language_model),
        replace(recipe.caption, start=str(out / "reading/model")),
    )
    outcome = Outcome(0, stopped=False)
    for number, stage in enumerate(stages, start=1):
        folder = out / stage.name.removeprefix("tiny-")
        if options.run.resume and _is_done(folder):
            options.report(f"Stage {number} of {len(stages)}, {stage.name}: done before")
            continue
        options.report(f"Stage {number} of {len(stages)}, {stage.name}, in {folder}")
        resume = options.run.resume and folder.exists()
        outcome = train_stage(
            stage, folder, replace(options, run=replace(options.run, resume=resume)), art=art
        )
        if not _is_done(folder):
            break
    return outcome


def _is_done(folder: Path) -> bool:
    return (folder / "model/config.json").is_file()


def train_stage(stage: Stage, out: Path, options: RunOptions, *, art: Art | None = None) -> Outcome:
    """Trains one stage into `out`, and leaves what it made in `out/model`."""
    art = art or load_art(styles=TRAIN_STYLES)
    task: Task
    if isinstance(stage, SamRecipe):
        settings = sam_settings(stage)
        accelerator = open_accelerator(settings, cpu=options.run.cpu)
        task = SamTask(stage, art, report=options.report)
    elif isinstance(stage, LanguageRecipe):
        settings = language_settings(stage)
        accelerator = open_accelerator(settings, cpu=options.run.cpu)
        task = _language_task(stage, out, art, options.report, accelerator)
    elif isinstance(stage, ReadingRecipe):
        settings = reading_settings(stage)
        accelerator = open_accelerator(settings, cpu=options.run.cpu)
        task = _reading_task(stage, out, art, options.report, accelerator)
    else:
        settings = caption_settings(stage)
        accelerator = open_accelerator(settings, cpu=options.run.cpu)
        _refuse_missing(start=stage.start)
        model = starting_model(stage, out / "tokenizer", write=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        task = SceneCaptionTask(stage, model, art, tokenizer=out / "tokenizer")
    return run_task(task, settings, out, options, accelerator)


def _language_task(
    recipe: LanguageRecipe, out: Path, art: Art, report: Report, accelerator: Accelerator
) -> LanguageTask:
    """The corpus and its tokenizer are made once, and kept beside the run."""
    corpus, tokenizer = out / "corpus.jsonl", out / "tokenizer"
    if accelerator.is_main_process and not corpus.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_corpus(recipe, art, corpus, report=report)
    if accelerator.is_main_process and not (tokenizer / "tokenizer.json").is_file():
        labels = [concept.label for concept in art.concepts]
        train_tokenizer(read_corpus(corpus), labels, recipe.sizes.vocab_size, tokenizer)
    accelerator.wait_for_everyone()
    return LanguageTask(recipe, read_corpus(corpus), tokenizer)


def _reading_task(
    recipe: ReadingRecipe, out: Path, art: Art, report: Report, accelerator: Accelerator
) -> ReadingTask:
    """Puts SAM, the language model and a new mixer together; objects are encoded once."""
    _refuse_missing(sam=recipe.sam, language_model=recipe.language_model)
    objects, tokenizer = out / "objects.pt", out / "tokenizer"
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        copy_tokenizer(Path(recipe.language_model), tokenizer)
        if not objects.is_file():
            sam = load_sam(Path(recipe.sam)).to(accelerator.device)
            write_objects(sam, art, recipe, objects, report=report)
    accelerator.wait_for_everyone()
    model = initial_model(Path(recipe.sam), Path(recipe.language_model), recipe)
    mixer_from_decoder(model, recipe.seed)
    return ReadingTask(recipe, model, read_objects(objects), art, tokenizer)


def _refuse_missing(**folders: str) -> None:
    for what, folder in folders.items():
        if not (Path(folder) / "config.json").is_file():
            raise ScaError(
                f"{what}={folder}: no model there; train it first, then --set {what}=FOLDER"
            )
