"""What one process of a run holds: model, optimizer, devices, data; how it starts and is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sca_batch.data.captioned import CaptionedImages, read_captioned
from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.model.sca import ScaModel
from sca_batch.train.caption_recipes import RUN_FIELDS, CaptionRecipe
from sca_batch.train.captioning import region_caption_loss
from sca_batch.train.checkpoints import Checkpoints
from sca_batch.train.embeddings import EmbeddingCache, encoder_fingerprint
from sca_batch.train.optimization import build_optimizer, parameter_groups, select_trainable
from sca_batch.train.region_batches import BatchFailure, RegionBatches
from sca_batch.train.region_samples import CaptionBatch
from sca_batch.train.start import starting_model

__all__ = [
    "CaptionRun",
    "CaptionStep",
    "Report",
    "encode",
    "gathered",
    "last_checkpoint",
    "open_accelerator",
    "read_sources",
    "run_batches",
    "save_run",
    "start_run",
]

Report = Callable[[str], None]


class CaptionStep(nn.Module):
    """One forward pass to the loss, as one module: what is wrapped for many devices.

    `embedding_BDHW` stands for the pixels where it is known already.
    """

    def __init__(self, model: ScaModel, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: CaptionBatch, embedding_BDHW: Tensor | None = None) -> Tensor:
        if embedding_BDHW is None:
            embedding_BDHW = encode(self.model, batch)
        return region_caption_loss(
            self.model,
            embedding_BDHW,
            image_R=batch.image_R,
            prompts={"boxes_R4": batch.boxes_R4},
            ids_RL=batch.ids_RL,
            attention_RL=batch.attention_RL,
            tasks=batch.tasks,
            label_smoothing=self.label_smoothing,
        )


def encode(model: ScaModel, batch: CaptionBatch) -> Tensor:
    """Embeddings of a batch's pixels; gradients are kept only for what is trained."""
    assert batch.pixels_B3SS is not None
    trained = any(p.requires_grad for p in model.vision_encoder.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        return model.encode_image(batch.pixels_B3SS)


@dataclass(slots=True)
class CaptionRun:
    """What one process of a run holds."""

    recipe: CaptionRecipe
    out: Path
    accelerator: Any
    model: ScaModel
    trainable: dict[str, nn.Parameter]
    step_module: Any
    optimizer: Any
    data_digest: str
    checkpoints: Checkpoints
    cache: EmbeddingCache | None
    report: Report
    step: int = 0  # the next one

    @property
    def micro_batches(self) -> int:
        """Batches that one device sees in a step."""
        devices = int(self.accelerator.num_processes)
        return self.recipe.images_per_step // (devices * self.recipe.images_per_device)


def open_accelerator(recipe: CaptionRecipe, *, cpu: bool) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedType
    except ImportError:
        raise MissingPackageError("accelerate", "training", "pip install 'sca[train]'") from None
    if recipe.precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ScaError("precision=fp16 needs a GPU; on a CPU: --set precision=no")
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu)
    sharded = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise ScaError(
            f"{accelerator.distributed_type}: the trained part is small and is not sharded; "
            "choose multi-GPU (DDP) in accelerate's configuration"
        )
    share = accelerator.num_processes * recipe.images_per_device
    if recipe.images_per_step % share:
        raise ScaError(
            f"images_per_step={recipe.images_per_step} cannot be divided among "
            f"{accelerator.num_processes} devices with {recipe.images_per_device} images each"
        )
    return accelerator


def read_sources(
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


def start_run(
    recipe: CaptionRecipe,
    out: Path,
    accelerator: Any,
    sources: Sequence[CaptionedImages],
    *,
    resume: bool,
    cache: Path | None,
    report: Report,
) -> CaptionRun:
    checkpoints = Checkpoints(out)
    steps = checkpoints.steps()
    if steps and not resume:
        raise ScaError(f"{out} holds a training run: go on with --resume, or choose another folder")
    if cache is not None and (recipe.jitter_scales is not None or recipe.timm_encoder):
        reason = (
            "images are jittered" if recipe.jitter_scales is not None else "its neck is trained"
        )
        raise ScaError(f"--cache-embeddings: not with recipe {recipe.name}, {reason}")
    out.mkdir(parents=True, exist_ok=True)
    model = starting_model(recipe, out / "tokenizer", write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    if cache is not None:
        cache = cache / encoder_fingerprint(model)
    trainable = select_trainable(model, recipe.also_trained)
    if recipe.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable()
    optimizer = build_optimizer(
        parameter_groups(model, lr_factors=recipe.lr_factors),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
    data_digest = " ".join(source.digest() for source in sources)
    state = checkpoints.load(steps[-1]) if steps else None
    if state is not None:
        _refuse_another_run(state, recipe, data_digest, out)
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["trained"][name])
    # The language model's dropout is active in training, frozen as it is (the reference's).
    step_module, optimizer = accelerator.prepare(
        CaptionStep(model.train(), recipe.label_smoothing), optimizer
    )
    run = CaptionRun(
        recipe=recipe,
        out=out,
        accelerator=accelerator,
        model=model,
        trainable=trainable,
        step_module=step_module,
        optimizer=optimizer,
        data_digest=data_digest,
        checkpoints=checkpoints,
        cache=None if cache is None else EmbeddingCache(cache, half=recipe.precision != "no"),
        report=report,
    )
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        run.step = int(state["step"])
        report(f"Going on from step {run.step:,} of {recipe.last_step:,}")
    else:
        count = sum(parameter.numel() for parameter in trainable.values())
        report(
            f"Training {count:,} parameters for {recipe.last_step:,} steps on "
            f"{accelerator.num_processes} x {accelerator.device.type}"
        )
    return run


def save_run(run: CaptionRun, score: float | None) -> None:
    """A checkpoint of everything that the next step depends on; frozen weights are elsewhere."""
    if not run.accelerator.is_main_process:
        return
    scaler = run.accelerator.scaler
    state = {
        "recipe": _recipe_key(run.recipe),
        "data": run.data_digest,
        "step": run.step,
        "slot": run.step * run.recipe.images_per_step,  # the data's position
        "trained": {name: p.detach().cpu() for name, p in run.trainable.items()},
        "optimizer": run.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    run.checkpoints.save(run.step, state, score=score)


def _refuse_another_run(
    state: Mapping[str, Any], recipe: CaptionRecipe, data_digest: str, out: Path
) -> None:
    theirs, ours = (json.loads(text) for text in (state["recipe"], _recipe_key(recipe)))
    differing = sorted(key for key in ours if ours[key] != theirs.get(key))
    if differing:
        listed_keys = ", ".join(f"{k} was {theirs.get(k)}, is {ours[k]}" for k in differing)
        raise ScaError(f"{out} is a run of another recipe: {listed_keys}. Choose another folder")
    if state["data"] != data_digest:
        raise ScaError(f"{out} is a run on other manifests; choose another folder for these")


def _recipe_key(recipe: CaptionRecipe) -> str:
    kept = {name: value for name, value in asdict(recipe).items() if name not in RUN_FIELDS}
    return json.dumps(kept, sort_keys=True)


def run_batches(
    run: CaptionRun, sources: Sequence[CaptionedImages], last: int
) -> Iterator[CaptionBatch | BatchFailure]:
    accelerator, recipe = run.accelerator, run.recipe
    data = RegionBatches(
        recipe,
        sources,
        size=run.model.config.image_size,
        tokenizer_folder=run.out / "tokenizer",
        eos_token_id=run.model.config.eos_token_id,
        cache=run.cache,
    )
    devices, own = accelerator.num_processes, accelerator.process_index
    # Counted over all devices, so that a step has the same images on one device as on eight.
    numbers = [
        (step * run.micro_batches + micro) * devices + own
        for step in range(run.step, last)
        for micro in range(run.micro_batches)
    ]
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=numbers,
            num_workers=recipe.workers,
            prefetch_factor=2 if recipe.workers else None,
        )
    )


def gathered(accelerator: Any, values: list[Any]) -> list[Any]:
    if accelerator.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    gathered: list[Any] = gather_object(values)
    return gathered


def last_checkpoint(run: CaptionRun) -> str:
    steps = run.checkpoints.steps()
    return (
        f"The checkpoint of step {steps[-1]:,} is kept" if steps else "There is no checkpoint yet"
    )
