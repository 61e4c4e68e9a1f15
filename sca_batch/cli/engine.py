"""`sca engine`: plans that make SAM and the mixer faster, built, listed, checked and timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sca_batch.cli.values import OUT_FOLDER, device_option
from sca_batch.errors import EXIT_LEFTOVERS, ScaError

if TYPE_CHECKING:
    from torch import Tensor

    from sca_batch.engines.plans import PlanFacts
    from sca_batch.engines.recipes import Recipe
    from sca_batch.model.sca import ScaModel

__all__ = ["engine"]

_MODEL = click.option("--model", "name", default="sca-tiny", show_default=True,
                      help="As in `sca caption`.")  # fmt: skip
_FOLDER = click.option(
    "--engine-dir",
    "folder",
    type=OUT_FOLDER,
    envvar="SCA_ENGINE_DIR",
    default=Path("engines"),
    show_default=True,
    help="Where plans lie; also SCA_ENGINE_DIR.",
)
_PICTURES = click.option(
    "--calibration",
    "pictures",
    multiple=True,
    metavar="IMAGES",
    help="int8: a folder, images or a manifest. Every other image gives the ranges, the rest is "
    "compared.  [default: the bundled sample]",
)


@click.group()
def engine() -> None:
    """Build, list, check and time plans: compiled parts of a model.

    A plan is one part (encoder, decoder, upscale or mixer) of one model for one library version and
    one kind of device. `sca caption` takes those that fit by itself, or by --engine.
    """


@engine.command()
@_MODEL
@click.option("--recipe", help="A .toml file, or a name: cpu-fp32, cpu-bf16, cpu-int8, "
              "vit-h-fp16, tiny.")  # fmt: skip
@click.option(
    "--backend",
    type=click.Choice(["auto", "gpu", "openvino", "onnx", "tensorrt", "tensorrt-rtx"]),
    help="The recipe's, else auto: openvino on a CPU, elsewhere gpu, the flavour of TensorRT for "
    "the GPU. tensorrt: all NVIDIA GPUs, built on the GPU; tensorrt-rtx: GeForce, RTX and A100, "
    "built anywhere.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="The recipe's, else fp32. fp16 is TensorRT's and ONNX Runtime's, bf16 TensorRT's and "
    "OpenVINO's, int8 that of the encoder on ONNX Runtime and OpenVINO.",
)
@_PICTURES
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Another value for a key of the recipe, say regions=1,32,32.")  # fmt: skip
@_FOLDER
@device_option()
@click.option("--dry-run", is_flag=True, help="Say what would be built; build nothing.")
def build(
    name: str,
    recipe: str | None,
    backend: str | None,
    precision: str | None,
    pictures: tuple[str, ...],
    overrides: tuple[str, ...],
    folder: Path,
    device: str,
    dry_run: bool,
) -> None:
    """Build plans for a model, and keep those that compute what the model computes.

    Each part is exported to ONNX, built, and compared with torch: relative error, masks, SAM's
    scores, captions. What misses its tolerance is not kept, and the exit code is 1.

    \b
    Examples:
      sca engine build                                         OpenVINO, exact, on a CPU
      sca engine build --model M --recipe vit-h-fp16           TensorRT-RTX in half precision
      sca engine build --model M --precision int8 --calibration photos/
      sca engine build --model M --backend gpu --precision fp16 --device cuda
    """
    from sca_batch.engines.plans import this_machine
    from sca_batch.engines.recipes import read_recipe
    from sca_batch.model.load import resolve_device

    given = [("backend", backend), ("precision", precision)]
    typed = [f"{key}={value}" for key, value in given if value]
    # Backend and precision belong together: they are replaced in one step.
    chosen = read_recipe(recipe, [*overrides, *typed])
    machine = this_machine(resolve_device(device), ["tensorrt", "tensorrt-rtx"])
    chosen = chosen.on(machine)
    if pictures and chosen.precision != "int8":
        raise ScaError(f"--calibration with precision {chosen.precision}: it belongs to int8")
    if dry_run:
        _describe(name, chosen, folder)
        return
    _build_all(name, chosen, folder, device, pictures)


@engine.command("list")
@_FOLDER
@device_option()
@click.option("--model", "name", help="Only this model's, and compared with its weights.")
def list_plans(folder: Path, device: str, name: str | None) -> None:
    """List the plans of a folder, and for each whether it may be used here, or why not."""
    from sca_batch.checks.engines import describe_error
    from sca_batch.engines.plans import read_plans, refusal, this_machine
    from sca_batch.model.checkpoint import weights_digest
    from sca_batch.model.load import load_model, resolve_device

    plans = read_plans(folder) if folder.is_dir() else []
    if not plans:
        click.echo(f"No plans in {folder}. Build some: sca engine build", err=True)
        return
    weights = None
    if name:
        weights = weights_digest(load_model(name, device="cpu", with_tokenizer=False))
    machine = this_machine(resolve_device(device))
    for path, facts in plans:
        if not isinstance(facts, str) and weights not in (None, facts.weights):
            continue
        reason = refusal(path, facts, machine, weights=weights)
        line = path.name
        if not isinstance(facts, str):
            ran = "" if facts.executed else " (its ONNX; not yet executed)"
            line += f"  {facts.plan_bytes / 1e6:,.1f} MB, {describe_error(facts.error)}{ran}"
        click.echo(line)
        click.echo(f"  {'usable here' if reason is None else f'NOT usable: {reason}'}")


@engine.command()
@_MODEL
@_PICTURES
@_FOLDER
@device_option()
def check(name: str, pictures: tuple[str, ...], folder: Path, device: str) -> None:
    """Compare a model's plans with torch, on this machine, and say which are within tolerance.

    Exits 1 when a plan misses its tolerance, 2 when there is none to check.
    """
    from dataclasses import replace

    from sca_batch.checks.engines import describe_error, misses, parity
    from sca_batch.checks.pictures import read_pictures
    from sca_batch.engines import load_plan

    model, plans = _usable(name, folder, device)
    failed = False
    for path, facts in plans:
        comparing = None
        if facts.precision == "int8":
            comparing = read_pictures(pictures, model.config.image_size).comparing()
        error = parity(model, facts.graph, load_plan(path, facts), comparing)
        facts = replace(facts, error=error)
        missed = misses(facts)
        failed |= bool(missed)
        verdict = f"FAILED: {'; '.join(missed)}" if missed else "ok"
        click.echo(f"{path.name}: {describe_error(facts.error)}: {verdict}")
    if failed:
        raise click.exceptions.Exit(EXIT_LEFTOVERS)


@engine.command()
@_MODEL
@_FOLDER
@device_option()
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 4),
              show_default=True, help="Images or regions at a time; may be repeated.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def bench(name: str, folder: Path, device: str, batches: tuple[int, ...], repeats: int) -> None:
    """Time a model's plans beside torch, in turns, and print medians in milliseconds.

    Both sides get the same inputs and threads; one round to warm up is not counted.
    """
    import torch

    from sca_batch.engines import load_plan
    from sca_batch.engines.graphs import build_graph, example_inputs

    model, plans = _usable(name, folder, device)
    click.echo(f"{model.device}, {torch.get_num_threads()} threads, median of {repeats}, ms")
    click.echo(f"{'PLAN':<60}  BATCH     TORCH      PLAN  RATIO")
    for path, facts in plans:
        run, module = load_plan(path, facts), build_graph(model, facts.graph)
        for size in batches:
            inputs = example_inputs(model, facts.graph, images=size, regions=size)
            with torch.inference_mode():
                theirs, ours = _medians([module, run], inputs, repeats, model.device.type)
            click.echo(
                f"{path.name:<60}  {size:>5}  {theirs:>8.1f}  {ours:>8.1f}  {ours / theirs:>5.2f}"
            )


def _medians(
    sides: Sequence[Callable[..., object]], inputs: tuple[Tensor, ...], repeats: int, device: str
) -> list[float]:
    import statistics
    import time

    import torch

    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats + 1):
        for side, taken in zip(sides, times, strict=True):
            began = time.perf_counter()
            side(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(1000 * (time.perf_counter() - began))
    return [statistics.median(taken[1:]) for taken in times]


def _build_all(
    name: str, recipe: Recipe, folder: Path, device: str, sources: tuple[str, ...]
) -> None:
    from sca_batch.checks.engines import build_checked, describe_error
    from sca_batch.checks.pictures import read_pictures
    from sca_batch.model.checkpoint import weights_digest
    from sca_batch.model.load import load_model

    model = load_model(name, device=device, dtype="float32", with_tokenizer=False)
    weights = weights_digest(model)
    shown = sys.stderr.isatty()

    def on_phase(phase: str, step: int, steps: int) -> bool:
        if shown:
            click.echo(f"\r\033[K  {phase} {step}/{steps}", nl=False, err=True)
        return True

    missed: list[str] = []
    pictures = read_pictures(sources, model.config.image_size) if sources else None
    for graph in recipe.parts:
        built = build_checked(
            model,
            graph,
            recipe,
            folder,
            weights=weights,
            model_name=name,
            pictures=pictures,
            on_phase=on_phase,
        )
        if shown:
            click.echo("\r\033[K", nl=False, err=True)
        missed += built.missed
        seconds = f"export {built.export_s:.1f} s, build {built.build_s:.1f} s"
        where = f"kept {built.path}" if built.path else "NOT kept: " + "; ".join(built.missed)
        click.echo(f"{graph}: {seconds}, {describe_error(built.facts.error)}; {where}", err=True)
        if built.facts.memory_bytes:
            need = built.facts.memory_bytes / 2**20
            click.echo(f"  needs {need:,.0f} MiB of GPU memory at its largest sizes", err=True)
        if not built.facts.executed:
            click.echo(
                "  its ONNX file was compared; the plan itself runs on a GPU: sca engine check "
                f"--model {name} there",
                err=True,
            )
    if missed:
        raise click.exceptions.Exit(EXIT_LEFTOVERS)


def _describe(name: str, recipe: Recipe, folder: Path) -> None:
    click.echo(
        f"Would build {', '.join(recipe.parts)} of {name} with {recipe.backend} in "
        f"{recipe.precision} into {folder}/"
    )
    if recipe.keep_fp32:
        click.echo(f"  kept in float32: {', '.join(recipe.keep_fp32)}")
    if recipe.backend.startswith("tensorrt"):
        for key in ("images", "regions", "prompt_tokens"):
            least, usual, most = getattr(recipe, key)
            click.echo(f"  {key}: {least} to {most}, fastest at {usual}")
        click.echo(f"  for {', '.join(recipe.capabilities) or 'what the library serves'}")


def _usable(name: str, folder: Path, device: str) -> tuple[ScaModel, list[tuple[Path, PlanFacts]]]:
    """The model, and those of its plans that may be used here; the others are named on stderr."""
    from sca_batch.engines.plans import read_plans, refusal, this_machine
    from sca_batch.model.checkpoint import weights_digest
    from sca_batch.model.load import load_model

    model = load_model(name, device=device, dtype="float32", with_tokenizer=False)
    weights, machine = weights_digest(model), this_machine(model.device)
    usable: list[tuple[Path, PlanFacts]] = []
    for path, facts in read_plans(folder) if folder.is_dir() else []:
        if isinstance(facts, str) or facts.weights != weights:
            continue
        if (reason := refusal(path, facts, machine, weights=weights)) is None:
            usable.append((path, facts))
        else:
            click.echo(f"Not used: {reason}", err=True)
    if not usable:
        raise ScaError(
            f"no plan of {name} in {folder} can be used here. Build some: sca engine build "
            f"--model {name}"
        )
    return model, usable
