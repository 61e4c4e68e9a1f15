"""A recorded training step, replayed: loss, gradients, and some AdamW steps on one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sca_batch.checks.compare import StageResult
from sca_batch.checks.recordings import Recording, inputs_for, read_recording
from sca_batch.checks.stages import STAGES, Inputs
from sca_batch.errors import ScaError
from sca_batch.model.sca import ScaModel
from sca_batch.model.weight_files import read_weight_file
from sca_batch.model.weight_names import published_name
from sca_batch.train.captioning import region_caption_loss
from sca_batch.train.optimization import build_optimizer, parameter_groups, select_trainable

__all__ = ["check_training"]

# Relative, as a rebuild on another release of the libraries met them with room. Below the floor
# they are absolute: key biases have gradients that are zero in theory.
GRADIENT = 1e-2
GRADIENT_FLOOR = 0.1
LOSSES = 1e-2
# One step of AdamW moves a weight by its learning rate however small the gradient is.
WEIGHTS = 1e-3


def check_training(model: ScaModel, recording: Path | Recording) -> list[StageResult]:
    """Repeats a recording's training step on a copy of the model and compares what comes out.

    Gradient norms are compared relative to the recorded ones, or to 0.1 where these are smaller.

    Raises:
        ScaError: where the recording has no training step, or no batch for it.
    """
    recorded = recording if isinstance(recording, Recording) else read_recording(recording)
    step = recorded.info.get("train_step")
    if not isinstance(step, dict) or "losses" not in step:
        raise ScaError(
            f"{recorded.folder}: info.json has no train_step; compare the stages instead, "
            "without --train"
        )
    model = copy.deepcopy(model).eval()
    inputs = inputs_for(model, recorded)
    if inputs.pixels is None or inputs.ids is None or not inputs.prompts:
        raise ScaError(
            f"{recorded.folder}: a training step needs pixel_values, prompts and input_ids in "
            "inputs.safetensors"
        )
    trainable = select_trainable(model)
    groups = parameter_groups(model)
    optimizer = build_optimizer(
        groups,
        lr=step["lr"],
        betas=tuple(step.get("betas", (0.9, 0.999))),
        weight_decay=step["weight_decay"],
        eps=step.get("eps", 1e-8),
    )
    losses: list[float] = []
    total_norms: list[float] = []
    first_norms: dict[str, float] = {}
    for i in range(len(step["losses"])):
        loss = _loss(model, inputs)
        losses.append(float(loss.detach()))
        if i + 1 == len(step["losses"]):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norms = {name: float(_gradient(p).norm()) for name, p in trainable.items()}
        first_norms = first_norms or norms
        total_norms.append(
            float(torch.nn.utils.clip_grad_norm_(trainable.values(), step.get("clip", 1.0)))
        )
        optimizer.step()

    recorded_norms = step.get("total_grad_norms_before_clip")
    if recorded_norms is not None:
        recorded_norms = _by_step(recorded_norms)
    decaying = {name for group in groups if group.decays for name in group.parameters}
    results = [
        _names("train.decay", step.get("decay"), decaying),
        _names("train.no_decay", step.get("no_decay"), trainable.keys() - decaying),
        _numbers("train.loss", step["losses"][:1], losses[:1], STAGES["loss"]),
        _numbers("train.losses", step["losses"], losses, LOSSES),
        _relative("train.total_grad_norms", recorded_norms, _by_step(total_norms)),
        _relative("train.grad_norms", step.get("grad_norms_first_step"), first_norms),
        _weights(recorded.folder / "trained.safetensors", model),
    ]
    return [result for result in results if result is not None]


def _loss(model: ScaModel, inputs: Inputs) -> Tensor:
    assert inputs.pixels is not None
    assert inputs.ids is not None
    assert inputs.attention is not None
    image_R = torch.arange(inputs.num_images, device=model.device)
    return region_caption_loss(
        model,
        model.encode_image(inputs.pixels),
        image_R=image_R.repeat_interleave(inputs.num_regions),
        prompts=inputs.prompts,
        ids_RL=inputs.ids,
        attention_RL=inputs.attention,
        tasks=inputs.tasks,
    )


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _by_step(values: Sequence[float]) -> dict[str, float]:
    return {f"step {i}": value for i, value in enumerate(values)}


def _names(stage: str, recorded: Sequence[str] | None, ours: set[str]) -> StageResult | None:
    if recorded is None:
        return None
    differing = sorted(set(recorded) ^ ours)
    note = f"{', '.join(differing[:3])}" if differing else f"{len(ours)} parameters"
    return StageResult(stage, float(len(differing)), 0.0, not differing, note)


def _numbers(
    stage: str, recorded: Sequence[float], ours: Sequence[float], tolerance: float
) -> StageResult:
    # numpy's maximum is NaN where a value is; a comparison with NaN is false, as is wanted here.
    error = float(np.max(np.abs(np.subtract(recorded, ours))))
    return StageResult(stage, error, tolerance, error <= tolerance)


def _relative(
    stage: str, recorded: Mapping[str, float] | None, ours: Mapping[str, float]
) -> StageResult | None:
    if recorded is None:
        return None
    if recorded.keys() != ours.keys():
        differing = sorted(recorded.keys() ^ ours.keys())
        return StageResult(stage, math.inf, GRADIENT, False, f"only in one: {differing[:3]}")
    errors = {
        name: abs(value - ours[name]) / max(abs(value), GRADIENT_FLOOR)
        for name, value in recorded.items()
    }
    worst = max(errors, key=lambda name: (not math.isfinite(errors[name]), errors[name]))
    note = f"{len(errors)} norms, relative; the worst is {worst}"
    return StageResult(stage, errors[worst], GRADIENT, errors[worst] <= GRADIENT, note)


def _weights(path: Path, model: ScaModel) -> StageResult | None:
    """The recorded weights after the last step."""
    if not path.is_file():
        return None
    recorded = read_weight_file(path)
    ours = {published_name(name): value for name, value in model.state_dict().items()}
    absent = sorted(recorded.keys() - ours.keys())
    if absent:
        return StageResult("train.weights", math.inf, WEIGHTS, False, f"no {absent[0]} here")
    errors = {
        name: float((value - ours[name].cpu()).abs().max())
        for name, value in recorded.items()
        # A key's bias adds one number to all scores of a softmax: its gradient is rounding, which
        # AdamW makes whole steps of.
        if not name.endswith("k_proj.bias")
    }
    worst = max(errors, key=lambda name: (not math.isfinite(errors[name]), errors[name]))
    note = f"{len(errors)} tensors after the last step; the worst is {worst}"
    return StageResult("train.weights", errors[worst], WEIGHTS, errors[worst] <= WEIGHTS, note)
