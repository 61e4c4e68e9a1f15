"""`sca model`: which models there are, what is in one, and whether it computes what it should."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sca_batch.cli.values import IN_FILE, IN_FOLDER, OUT_FOLDER, aligned, device_option
from sca_batch.errors import EXIT_LEFTOVERS, ScaError

if TYPE_CHECKING:
    from sca_batch.checks import StageResult
    from sca_batch.model.config import ConfigFile, ModelSizes
    from sca_batch.model.hub import Composition

__all__ = ["model"]

_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of matrix products. Tolerances are float32's: half precision needs --atol.",
)


@click.group()
def model() -> None:
    """List models, look into one, and check that it computes what it should.

    A model is a name that `sca model list` shows, a checkpoint folder, a hub id (owner/name, or
    owner/name@revision), or SAM, a language model and a mixer put together:
    sam=facebook/sam-vit-huge,lm=gpt2-large,mixer=./mixer.safetensors
    """


@model.command("list")
def list_models() -> None:
    """List the models that have a name.

    CIDEr and METEOR are those reported on Visual Genome's test set. Models other than the bundled
    one are downloaded from the hub when they are first used.
    """
    from sca_batch.model.names import MODELS

    rows = [("MODEL", "LANGUAGE MODEL", "TRAINED ON", "CIDER", "METEOR", "WHERE")]
    for name, facts in MODELS.items():
        scores = (_score(facts.cider), _score(facts.meteor))
        where = "bundled" if facts.bundled else "hub"
        rows.append((name, facts.language_model, facts.trained_on, *scores, where))
    click.echo("\n".join(aligned(rows)))


@model.command()
@click.argument("name")
def info(name: str) -> None:
    """Show the sizes, parameters, files and tokenizer of the model NAME.

    Nothing is computed and, for a folder, no weights are read into memory.
    """
    from sca_batch.model.hub import Composition, locate, quiet_libraries

    with quiet_libraries():
        located = locate(name)
        if isinstance(located, Composition):
            lines = _composition_info(name, located)
        else:
            lines = _folder_info(located)
    click.echo("\n".join(aligned(lines)))
    if not isinstance(located, Composition):
        for card in ("LICENSE", "README.md", "MODEL_CARD.md"):
            if (located / card).is_file():
                click.echo(f"\n{card}:\n{(located / card).read_text(encoding='utf-8').strip()}")


@model.command("record")
@click.argument("checkpoint")
@click.option("-o", "--out", type=OUT_FOLDER, required=True, help="Folder for the recording.")
@click.option("--image", type=IN_FILE, help="An image file; a drawn test picture if left out.")
@click.option(
    "--box",
    "boxes",
    multiple=True,
    metavar="X0,Y0,X1,Y1",
    help="A region as a box in the image's pixels; may be repeated.",
)
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="X,Y[,0|1]...",
    help="A region as a point, or several separated by spaces, in the image's pixels: 1 is on the "
    "region (the default), 0 off it; may be repeated. As many boxes as points: one region each.",
)
@click.option(
    "--task",
    type=click.Choice(["caption", "recognition"]),
    default="caption",
    show_default=True,
    help="Which task tokens stand in front of the queries.",
)
@click.option(
    "--caption",
    "captions",
    multiple=True,
    metavar="TEXT",
    help="What is teacher-forced, once for each region; the greedy captions if left out.",
)
@click.option("--overwrite", is_flag=True, help="Replace a recording that is in the folder.")
@device_option()
@_DTYPE
def record_stages(
    checkpoint: str,
    out: Path,
    image: Path | None,
    boxes: tuple[str, ...],
    points: tuple[str, ...],
    task: str,
    captions: tuple[str, ...],
    overwrite: bool,
    device: str,
    dtype: str,
) -> None:
    """Write what every stage of CHECKPOINT produces, for `sca model check` to compare with.

    Image embedding, prompts, SAM's tokens, masks and IoU, caption queries, language model logits,
    loss and generated ids go to DIR as safetensors. Without regions, three boxes are recorded.

    \b
    Example:
      sca model record ./checkpoint -o before --image cat.jpg --box 40,30,380,420
      sca model check ./checkpoint --against before --device cuda
    """
    from sca_batch.checks import record
    from sca_batch.model.checkpoint import weights_digest
    from sca_batch.model.load import load_model

    given_boxes = [_numbers(box, (4,), "--box", "X0,Y0,X1,Y1") for box in boxes]
    given_points = [[_point(point) for point in region.split()] for region in points]
    present = [n for n in ("inputs.safetensors", "info.json") if (out / n).exists()]
    if present and not overwrite:
        raise ScaError(f"{out} has {present[0]} already. Replace it with --overwrite")
    loaded = load_model(checkpoint, device=device, dtype=dtype, with_tokenizer=bool(captions))
    written = record(
        loaded,
        out,
        image=image,
        boxes=given_boxes or None,
        points=given_points or None,
        task=task,
        captions=captions or None,
        origin={"model": _shown_name(checkpoint), "weights_sha256": weights_digest(loaded)},
    )
    regions = f"{written['regions']} region" + ("" if written["regions"] == 1 else "s")
    click.echo(
        f"Recorded {regions} in {out}. Compare: sca model check {checkpoint} --against {out}",
        err=True,
    )


@model.command("check")
@click.argument("checkpoint")
@click.option(
    "--against",
    type=IN_FOLDER,
    help="Folder of the recording; the checkpoint's own folder if left out.",
)
@click.option(
    "--train",
    "with_training",
    is_flag=True,
    help="Also repeat the recorded training step: loss, gradients, and some AdamW steps.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the table as JSON.")
@click.option(
    "--atol",
    "tolerances",
    multiple=True,
    metavar="STAGE=X",
    help="Another absolute tolerance for a stage or a pattern such as 'lm_*', for ids the number "
    "of captions that may differ; may be repeated.",
)
@device_option()
@_DTYPE
def check_stages(
    checkpoint: str,
    against: Path | None,
    with_training: bool,
    as_json: bool,
    tolerances: tuple[str, ...],
    device: str,
    dtype: str,
) -> None:
    """Compare CHECKPOINT with a recording, stage by stage.

    The recording gives the inputs, tasks and generation arguments. Each line is one stage: the
    largest absolute error, the tolerance, and whether it is met; for generated ids, the number of
    captions that differ. The last line is the verdict.

    Exits 1 when a stage fails, 2 when the folder holds no recording. A recording may come from
    `sca model record` or from any other implementation of the model.
    """
    from sca_batch.checks import check, read_recording, verdict
    from sca_batch.model.hub import locate
    from sca_batch.model.load import load_model

    atol = dict(_tolerance(item) for item in tolerances)
    if against is None:
        located = locate(checkpoint)
        if not isinstance(located, Path):
            raise ScaError(
                "a model put together from parts has no recording beside it; name one: --against"
            )
        against = located
    # Before the weights: a folder that is no recording is told at once.
    recording = read_recording(against)
    loaded = load_model(checkpoint, device=device, dtype=dtype, with_tokenizer=False)
    results = check(loaded, recording, atol=atol)
    if with_training:
        from sca_batch.checks.training import check_training

        results += check_training(loaded, recording)
    passed, sentence = verdict(results)
    if as_json:
        stages = [_as_json(result) for result in results]
        document = {"ok": passed, "verdict": sentence, "stages": stages}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        titles = ("STAGE", "MAX ERROR", "TOLERANCE", "OK", "")
        click.echo("\n".join(aligned([titles, *map(_row, results)])))
        click.echo(sentence)
    if not passed:
        raise click.exceptions.Exit(EXIT_LEFTOVERS)


def _composition_info(name: str, parts: Composition) -> list[tuple[str, str]]:
    from sca_batch.model.checkpoint import parameter_counts
    from sca_batch.model.config import ModelSizes
    from sca_batch.model.load import load_model

    loaded = load_model(name, device="cpu", with_tokenizer=False)
    sizes = ModelSizes.of(loaded.config.to_dict())
    return [
        *_sizes(loaded.config, sizes, parameter_counts(loaded)),
        ("SAM", str(parts.sam)),
        ("language model", str(parts.language_model)),
        ("mixer", str(parts.mixer)),
    ]


def _folder_info(folder: Path) -> list[tuple[str, str]]:
    from sca_batch.model.config import read_config_file, read_sizes
    from sca_batch.model.tokenizer import tokenizer_files
    from sca_batch.model.weight_files import stored_tensors, weight_files
    from sca_batch.model.weight_names import published_counts

    config, sizes = read_config_file(folder), read_sizes(folder)
    files = weight_files(folder)
    stored = {name: found for path in files for name, found in stored_tensors(path).items()}
    counts = published_counts({n: size for n, (_, size) in stored.items()}, tied=sizes.tied)
    dtypes: Counter[str] = Counter()
    for dtype, size in stored.values():
        dtypes[dtype] += size
    on_disk = (f"{name} ({count:,} values)" for name, count in sorted(dtypes.items()))
    named = config.tokenizer_name
    return [
        ("folder", str(folder)),
        *_sizes(config, sizes, counts),
        *(("file", f"{path.name}, {path.stat().st_size / 1e6:,.1f} MB") for path in files),
        ("on disk", ", ".join(on_disk)),
        (
            "tokenizer",
            ", ".join(tokenizer_files(folder))
            or (f"none beside the weights; that of {named}" if named else "none"),
        ),
    ]


def _sizes(config: ConfigFile, sizes: ModelSizes, counts: tuple[int, int]) -> list[tuple[str, str]]:
    encoder = f"width {sizes.vision_width}, {sizes.vision_layers} layers"
    if config.timm_vision_name:
        encoder = config.timm_vision_name + (", a pyramid" if config.timm_levels else "")
    lines = [
        ("image", f"{sizes.image} x {sizes.image} pixels"),
        ("encoder", encoder),
        (
            "mixer",
            f"width {sizes.prompt_width}, {config.mixer_layers} layers, "
            f"{config.num_caption_tokens} queries, {config.num_caption_heads} caption heads, "
            f"{config.num_task_tokens} task tokens",
        ),
        (
            "language model",
            f"{sizes.language_model}, width {sizes.text_width}, {sizes.text_layers} layers, "
            f"{sizes.vocabulary:,} tokens",
        ),
        ("parameters", f"{counts[0]:,}, of them {counts[1]:,} trainable"),
    ]
    if config.automatic_masks:
        # As `sca caption` spells them.
        given = (
            f"--{n.replace('_', '-')} {value:g}" for n, value in config.automatic_masks.items()
        )
        lines.append(("automatic masks", " ".join(given)))
    return lines


def _shown_name(checkpoint: str) -> str:
    # A folder by its name alone: where it lies on this machine is nobody's business.
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint


def _numbers(text: str, counts: tuple[int, ...], option: str, expected: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(math.isfinite(value) for value in values):
        raise ScaError(f"{option} {text}: expected {expected}, in pixels")
    return values


def _point(text: str) -> list[float]:
    expected = "X,Y or X,Y,LABEL with a label of 1 (on the region) or 0 (off it)"
    values = _numbers(text, (2, 3), "--point", expected)
    if len(values) == 3 and values[2] not in (0, 1):
        raise ScaError(f"--point {text}: expected {expected}, in pixels")
    return values


def _tolerance(text: str) -> tuple[str, float]:
    stage, _, number = text.partition("=")
    try:
        return stage, float(number)
    except ValueError:
        raise ScaError(f"--atol {text}: expected STAGE=X, say lm_logits=0.01") from None


def _as_json(result: StageResult) -> dict[str, object]:
    error = result.max_error
    return {
        "stage": result.stage,
        # JSON has no NaN and no infinity; `ok` and `note` tell them from "not compared".
        "max_error": error if error is not None and math.isfinite(error) else None,
        "tolerance": result.tolerance,
        "ok": result.ok,
        "note": result.note,
    }


def _row(result: StageResult) -> tuple[str, ...]:
    if result.max_error is None:
        error = "-"
    else:
        exact = result.tolerance == 0 and math.isfinite(result.max_error)
        error = f"{result.max_error:g}" if exact else f"{result.max_error:.1e}"
    tolerance = "-" if result.tolerance is None else f"{result.tolerance:g}"
    ok = {True: "ok", False: "FAILED", None: "-"}[result.ok]
    return result.stage, error, tolerance, ok, result.note


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
