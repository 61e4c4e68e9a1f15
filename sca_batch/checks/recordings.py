"""Recordings on disk: reading what others wrote, and writing our own."""

# Shape letters:  B images   N regions per image   R = B * N   S pixels of the square input
#                 P points in one prompt   L caption ids   D, H, W image embedding

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sca_batch.checks.stages import Inputs
from sca_batch.errors import ScaError
from sca_batch.model.config import TASKS, ScaConfig
from sca_batch.model.sca import ScaModel

__all__ = ["INPUTS", "Recording", "inputs_for", "read_recording", "write_recording"]

INPUTS = (
    "pixel_values",
    "input_boxes",
    "input_points",
    "input_labels",
    "input_masks",
    "input_ids",
    "attention_mask",
    "labels",
)


def _read_recording(
    folder: Path,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    if not folder.is_dir():
        raise ScaError(f"{folder}: no such folder; expected a recording")
    if not (folder / "inputs.safetensors").is_file():
        raise ScaError(
            f"{folder}: not a recording (no inputs.safetensors). Make one with "
            "`sca model record CHECKPOINT -o DIR`, or name one with --against"
        )
    inputs, stages, generated = (
        _read_tensors(folder / f"{name}.safetensors") for name in ("inputs", "stages", "generate")
    )
    if not stages and not generated:
        raise ScaError(
            f"{folder}: not a recording; expected stages.safetensors or generate.safetensors "
            "beside inputs.safetensors"
        )
    path = folder / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ScaError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(info, dict):
        raise ScaError(f"{path}: expected a JSON object")
    return inputs, stages, generated, info


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return {}
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ScaError(f"{path}: not a safetensors file: {error}") from None
    return tensors


def _inputs_from(
    model: ScaModel,
    folder: Path,
    on_file: Mapping[str, Tensor],
    stages: Mapping[str, Tensor],
    info: Mapping[str, Any],
) -> _Inputs:
    where, config = folder / "inputs.safetensors", model.config

    def fitting(name: str, *shape: int | None) -> Tensor | None:
        if name not in on_file:
            return None
        value = on_file[name]
        if value.ndim != len(shape) or any(
            want is not None and side != want for side, want in zip(value.shape, shape, strict=True)
        ):
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ScaError(
                f"{where}: {name} is {tuple(value.shape)}, but this model needs ({wanted})"
            )
        return value.to(model.device)

    size, grid = config.image_size, config.grid_size
    pixels = fitting("pixel_values", None, 3, size, size)
    embedding = None
    if pixels is None and "image_embeddings" in stages:
        embedding = stages["image_embeddings"].float().to(model.device)
        if embedding.shape[1:] != (config.width, grid, grid):
            raise ScaError(
                f"{folder / 'stages.safetensors'}: image_embeddings is {tuple(embedding.shape)}, "
                f"but this model needs (any, {config.width}, {grid}, {grid})"
            )
    first = pixels if pixels is not None else embedding
    boxes = fitting("input_boxes", None, None, 4)
    points = fitting("input_points", None, None, None, 2)
    prompts = {
        "boxes_R4": boxes,
        "points_RP2": points,
        "labels_RP": fitting("input_labels", None, None, None) if points is not None else None,
        "masks_R1HW": fitting("input_masks", None, None, 1, 4 * grid, 4 * grid),
    }
    shown = {name: value for name, value in prompts.items() if value is not None}
    leading = {tuple(value.shape[:2]) for value in shown.values()}
    if first is not None and leading:
        leading |= {(len(first), next(iter(leading))[1])}
    if len(leading) > 1:
        raise ScaError(
            f"{where}: its tensors disagree on images and regions: {sorted(leading)}; expected "
            "the same two leading sizes in all prompts, and as many images in pixel_values"
        )
    if points is not None and shown.get("labels_RP", points[..., 0]).shape != points.shape[:3]:
        raise ScaError(f"{where}: input_labels and input_points have different numbers of points")
    num_images, num_regions = leading.pop() if leading else (len(first) if first is not None else 0, 0)
    ids, attention, labels = _forced_inputs(where, on_file, (num_images, num_regions), config)
    return _Inputs(
        num_images=num_images,
        num_regions=num_regions,
        tasks_R=_tasks(info, num_images, num_regions, folder / "info.json"),
        pixels_B3SS=None if pixels is None else pixels.float(),
        embedding_BDHW=embedding,
        prompts={name: value.flatten(0, 1) for name, value in shown.items()},
        ids_RL=None if ids is None else ids.to(model.device),
        attention_RL=None if attention is None else attention.to(model.device),
        labels_RL=None if labels is None else labels.to(model.device),
    )


def _forced_inputs(
    where: Path, on_file: Mapping[str, Tensor], leading: tuple[int, int], config: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Ids, attention and labels (R, L) without the extra -100; each may follow from the others."""
    ids, attention, labels = (
        on_file.get(name) for name in ("input_ids", "attention_mask", "labels")
    )
    if ids is None and labels is None:
        return None, None, None
    for name in ("input_ids", "attention_mask", "labels"):
        value = on_file.get(name)
        if value is not None and (value.ndim != 3 or tuple(value.shape[:2]) != leading):
            raise ScaError(f"{where}: {name} is {tuple(value.shape)}, expected {(*leading, 'any')}")
    if labels is not None and (ids is None or labels.shape[-1] == ids.shape[-1] + 1):
        labels = labels[..., 1:]  # the reference puts one more -100 in front
    if attention is None:
        attention = torch.ones_like(ids) if labels is None else (labels != -100).long()
    if ids is None:
        assert labels is not None
        ids = labels.clamp(min=0)
    if labels is None:
        labels = ids.masked_fill(attention == 0, -100)
    if not ids.shape == attention.shape == labels.shape:
        raise ScaError(
            f"{where}: input_ids {tuple(ids.shape)}, attention_mask {tuple(attention.shape)} and "
            f"labels {tuple(on_file['labels'].shape)} do not belong together"
        )
    vocabulary = int(config.text.vocab_size)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ScaError(f"{where}: input_ids has ids outside the model's {vocabulary:,} tokens")
    if labels.numel() and int(labels.max()) >= vocabulary:
        raise ScaError(f"{where}: labels has ids outside the model's {vocabulary:,} tokens")
    return ids.flatten(0, 1), attention.flatten(0, 1), labels.flatten(0, 1)


def _tasks(info: Mapping[str, Any], num_images: int, num_regions: int, where: Path) -> list[str]:
    """One task per region; info.json has one per image."""
    given = info.get("tasks", "caption")
    if given is None or given == []:
        given = "caption"
    per_image = [given] * num_images if isinstance(given, str) else list(given)
    if len(per_image) != num_images:
        raise ScaError(f"{where}: {len(per_image)} tasks for {num_images} images")
    tasks: list[str] = []
    for task in per_image:
        of_regions = [task] * num_regions if isinstance(task, str) else list(task)
        tasks += of_regions
    if len(tasks) != num_images * num_regions or not set(tasks) <= set(TASKS):
        raise ScaError(f"{where}: tasks is {given}, expected {' or '.join(TASKS)} for each image")
    return tasks


def _write(
    folder: Path,
    inputs: Mapping[str, Tensor],
    stages: Mapping[str, Tensor],
    generated: Mapping[str, Tensor],
    info: Mapping[str, Any],
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    files = {"inputs": inputs, "stages": stages, "generate": generated}
    for name, tensors in files.items():
        # Clones: several stages are views of one tensor, which safetensors refuses.
        contiguous = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors")
    (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
