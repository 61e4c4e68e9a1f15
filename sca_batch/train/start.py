"""Where a run begins: SAM, a language model and a new mixer, or a checkpoint to go on from."""

from __future__ import annotations

from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.model.hub import fetch_part, quiet_libraries, tokenizer_folder
from sca_batch.model.load import load_model
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import read_tokenizer, tokenizer_files
from sca_batch.storage.atomic import writing
from sca_batch.train.caption_recipes import CaptionRecipe
from sca_batch.train.initial import initial_model

__all__ = ["copy_tokenizer", "starting_model"]


def starting_model(recipe: CaptionRecipe, tokenizer: Path, *, write: bool) -> ScaModel:
    """The model of a recipe before its first step, float32, on the CPU, with its tokenizer.

    The tokenizer's files are copied to `tokenizer` where `write` says so, to be read by workers and
    to go with the result.
    """
    with quiet_libraries():
        if recipe.start:
            model = load_model(recipe.start, device="cpu", dtype="float32", with_tokenizer=False)
            source = tokenizer_folder(recipe.start, model.config.tokenizer_name)
        else:
            language_model = fetch_part("lm", recipe.language_model)
            model = initial_model(
                fetch_part("sam", recipe.sam),
                language_model,
                mixer_layers=recipe.mixer_layers,
                caption_tokens=recipe.caption_tokens,
                task_tokens=recipe.task_tokens,
                timm_encoder=recipe.timm_encoder,
                tokenizer_name=recipe.language_model,
                seed=recipe.seed,
            )
            source = language_model
    model.tokenizer = read_tokenizer(source, eos_token_id=model.config.eos_token_id)
    if write:
        copy_tokenizer(source, tokenizer)
    return model


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer."""
    names = tokenizer_files(source)
    if not names:
        raise ScaError(f"{source}: no tokenizer to copy")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with writing(target / name) as file:
            file.write((source / name).read_bytes())
