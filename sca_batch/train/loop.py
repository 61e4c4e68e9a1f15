"""One training loop: step, log, validate, save, go on after any stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from sca_batch.data.atomic import writing
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import read_tokenizer
from sca_batch.train.art import TRAIN_STYLES, Art, load_art
from sca_batch.train.calibration import calibrate
from sca_batch.train.examples import SceneBatches, StepBatch, be_nice, train_tokenizer
from sca_batch.train.initial import initialise
from sca_batch.train.logs import cut_log, listed, row_line, write_row
from sca_batch.train.losses import build_classifiers, step_losses
from sca_batch.train.recipes import Recipe
from sca_batch.train.scenes import HELD_OUT_FIRST_SEED, Scene, compose_scene
from sca_batch.train.scoring import score_scene, summarise

__all__ = ["learning_rate", "train", "write_model"]

# Far from the first held-out seeds, which benchmarks use.
VALIDATION_FIRST_SEED = HELD_OUT_FIRST_SEED + 10_000_000
END_TOKEN_ID = 0

Report = Callable[[str], None]


@dataclass(slots=True)
class _Run:
    """What a checkpoint holds."""

    model: ScaModel
    classifiers: nn.ModuleDict
    optimizer: torch.optim.AdamW
    step: int = 0  # the next one


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    report: Report,
    art: Art | None = None,
    workers: int = 1,
    compile_layers: bool = False,
    stop_after: int | None = None,
) -> None:
    """Trains `recipe` into `out`, and leaves a model in the published format in `out/model`.

    `out` gets `log.jsonl`, `checkpoint.pt` and the tokenizer. With `resume` it goes on from the
    checkpoint with the losses of an unbroken run. `workers` processes compose scenes ahead (0: this
    one does); `compile_layers` has torch compile the parts of fixed shape, which needs a C++
    compiler and pays within minutes; `stop_after` stops, saved, before that step.

    Raises:
        ScaError: there is a run in `out` and `resume` is False, or its recipe is another; a loss
            is not finite.
    """
    art = art or load_art(styles=TRAIN_STYLES)
    run = _start(recipe, out, art, resume=resume, report=report)
    tokenizer = read_tokenizer(out, eos_token_id=END_TOKEN_ID)
    run.model.tokenizer = tokenizer
    if recipe.bf16:
        run.model.autocast_dtype = torch.bfloat16
    if compile_layers:
        _compile(run.model)
    validation = _validation_scenes(recipe, art)
    batches = _batches(recipe, art, out, first=run.step, workers=workers)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    begun = saved = time.monotonic()
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    first = run.step
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        for batch in islice(batches, max(last - first, 0)):
            step = run.step
            lr = learning_rate(recipe, step)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            losses = step_losses(run.model, run.classifiers, batch, recipe)
            if not math.isfinite(losses.total.item()):
                raise ScaError(
                    f"step {step}: the loss is {losses.total.item()} on the scenes from seed "
                    f"{step * recipe.images_per_step}. The last checkpoint is kept: lower lr, "
                    "then --resume"
                )
            run.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            run.optimizer.step()
            run.step = step + 1
            now = time.monotonic()
            row: dict[str, Any] = {
                "step": step,
                "loss": losses.total.item(),
                **{name: value.item() for name, value in losses.parts.items()},
                "lr": lr,
                "grad_norm": float(norm),
                "images_per_s": recipe.images_per_step / (now - begun),
            }
            begun = now
            write_row(log, row)
            if run.step % 20 == 0:
                report(row_line(row))
            if run.step % recipe.validate_every == 0 or run.step == recipe.steps:
                scores = _validate(run.model, validation, art)
                write_row(log, {"step": step, "validation": scores})
                report(f"step {step}: " + listed(scores))
                begun = time.monotonic()
            if time.monotonic() - saved > recipe.checkpoint_every_s or run.step == last:
                _save(run, recipe, out)
                saved = time.monotonic()
    if run.step == recipe.steps:
        _uncompile(run.model)
        run.model.autocast_dtype = None
        calibration = calibrate(run.model.eval(), _calibration_scenes(recipe, art))
        report("Calibrated: " + listed(asdict(calibration)))
        write_model(run.model, out)
        report(f"Wrote the trained model to {out / 'model'}")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine that ends at zero."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def write_model(model: ScaModel, out: Path) -> None:
    """Writes `out/model`: config.json, tokenizer.json, and half-precision weights."""
    folder = out / "model"
    save_checkpoint(model, folder, dtype=torch.float16)
    with writing(folder / "tokenizer.json") as file:
        file.write((out / "tokenizer.json").read_bytes())


def _start(recipe: Recipe, out: Path, art: Art, *, resume: bool, report: Report) -> _Run:
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise ScaError(f"{out} holds a training run: go on with --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        train_tokenizer(recipe, art, out)
    vocab_size = len(json.loads((out / "tokenizer.json").read_bytes())["model"]["vocab"])
    config = recipe.sizes.config(vocab_size=vocab_size, eos_token_id=END_TOKEN_ID)
    model = ScaModel(config)
    initialise(model, recipe.seed)
    classifiers = build_classifiers(config, len(art.concepts), recipe.seed)
    run = _Run(model.train(), classifiers, _optimizer(model, classifiers, recipe))
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != _recipe_key(recipe):
            raise ScaError(f"{checkpoint} is of another recipe; choose another folder for this one")
        model.load_state_dict(state["model"])
        classifiers.load_state_dict(state["classifiers"])
        run.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        run.step = int(state["step"])
        cut_log(out / "log.jsonl", run.step)
        report(f"Going on from step {run.step} of {checkpoint}")
    else:
        (out / "log.jsonl").unlink(missing_ok=True)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        report(f"Training {trainable:,} parameters for {recipe.steps:,} steps")
    return run


def _optimizer(model: ScaModel, classifiers: nn.ModuleDict, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases, norms and embeddings of positions do not decay."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in [*model.named_parameters(), *classifiers.named_parameters()]:
        if parameter.requires_grad:
            no_decay = parameter.ndim < 2 or "pos" in name or "embed.weight" in name
            (free if no_decay else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _batches(
    recipe: Recipe, art: Art, out: Path, *, first: int, workers: int
) -> Iterator[StepBatch]:
    return iter(
        DataLoader(
            SceneBatches(recipe, art, out, END_TOKEN_ID),
            batch_size=None,
            sampler=range(first, recipe.steps),
            num_workers=workers,
            prefetch_factor=3 if workers else None,
            worker_init_fn=be_nice,
        )
    )


def _validation_scenes(recipe: Recipe, art: Art) -> list[Scene]:
    """New compositions of drawings in the training styles, one style a scene."""
    styles = islice(cycle(s for s in TRAIN_STYLES if s in art.styles), recipe.validation_scenes)
    return [
        compose_scene(
            VALIDATION_FIRST_SEED + i,
            art,
            split="held-out",
            style=style,
            size_px=recipe.sizes.image_size,
        )
        for i, style in enumerate(styles)
    ]


def _calibration_scenes(recipe: Recipe, art: Art) -> list[Scene]:
    """Training scenes from the far end of the seeds, which no run reaches."""
    return [
        compose_scene(HELD_OUT_FIRST_SEED - 1 - i, art, size_px=recipe.sizes.image_size)
        for i in range(recipe.calibration_scenes)
    ]


def _validate(model: ScaModel, scenes: list[Scene], art: Art) -> dict[str, float]:
    # Compiled code is for the shapes of a step; one scene at a time would compile it anew.
    compiled = _uncompile(model)
    model.eval()
    scores = summarise(row for scene in scenes for row in score_scene(model, scene, art))
    model.train()
    for module, forward in compiled.items():
        module.__dict__["forward"] = forward
    return scores


def _uncompile(model: ScaModel) -> dict[nn.Module, Any]:
    """Takes compiled forward passes off; returns them."""
    return {
        module: module.__dict__.pop("forward")
        for module in model.modules()
        if "forward" in module.__dict__
    }


def _compile(model: ScaModel) -> None:
    for module in (
        *model.vision_encoder.layers,
        model.mask_decoder.transformer,
        model.mixer.transformer,
    ):
        module.__dict__["forward"] = torch.compile(module.forward)


def _save(run: _Run, recipe: Recipe, out: Path) -> None:
    with writing(out / "checkpoint.pt") as file:
        torch.save(
            {
                "recipe": _recipe_key(recipe),
                "step": run.step,
                "model": run.model.state_dict(),
                "classifiers": run.classifiers.state_dict(),
                "optimizer": run.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
            },
            file,
        )


def _recipe_key(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)
