"""Recordings on disk: reading what anyone wrote, and writing our own."""

# Shape letters:  B images   N regions per image   R = B * N   P points in one prompt
#                 L caption ids   D, H, W image embedding

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sca_batch.checks.stages import GENERATED, STAGES, Inputs
from sca_batch.errors import ScaError
from sca_batch.model.config import TASKS
from sca_batch.model.sca import ScaModel
from sca_batch.model.weight_files import read_json, read_weight_file

__all__ = ["INPUTS", "Recording", "inputs_for", "read_recording", "write_recording"]

INPUTS = (
    "pixel_values", "input_boxes", "input_points", "input_labels", "input_masks", "input_ids",
    "attention_mask", "labels",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """The files of a recording, as they are; what is missing is empty."""

    folder: Path
    inputs: Mapping[str, Tensor]
    stages: Mapping[str, Tensor]
    generated: Mapping[str, Tensor]
    info: Mapping[str, object]

    @property
    def id_sets(self) -> list[str]:
        """Names of the sets of generated ids: whole numbers, or only listed in info.json."""
        names = {
            name
            for name, value in self.generated.items()
            if name not in GENERATED and not value.is_floating_point() and value.ndim >= 2
        }
        return sorted(names | self._listed_ids.keys())

    @property
    def _listed_ids(self) -> dict[str, object]:
        listed = self.info.get("generated_ids")
        return listed if isinstance(listed, dict) else {}

    @property
    def unknown_tensors(self) -> list[str]:
        """Names of tensors that no stage gives."""
        known = {*GENERATED, *self.id_sets}
        return sorted(self.stages.keys() - STAGES.keys()) + [
            f"generate.{name}" for name in sorted(self.generated.keys() - known)
        ]

    def id_rows(self, name: str) -> list[list[int]]:
        """One row of ids per region and caption head."""
        if name in self.generated:
            rows: list[list[int]] = self.generated[name].flatten(0, -2).tolist()
            return rows
        return _rows(self._listed_ids[name], f"{self.folder}/info.json: {name}")


def read_recording(folder: Path) -> Recording:
    """Reads a recording; whether it fits a model is seen by `inputs_for`.

    Raises:
        ScaError: where the folder is none, or one of its files cannot be read.
    """
    if not folder.is_dir():
        raise ScaError(f"{folder}: no such folder; expected a recording")
    if not (folder / "inputs.safetensors").is_file():
        raise ScaError(
            f"{folder}: not a recording (no inputs.safetensors). Name one with --against, or make "
            "one: sca model record CHECKPOINT -o DIR"
        )
    info = {}
    if (folder / "info.json").is_file():
        info = read_json(folder / "info.json", "what is known of the recording")
    files = (folder / f"{name}.safetensors" for name in ("inputs", "stages", "generate"))
    inputs, stages, generated = (read_weight_file(path) if path.is_file() else {} for path in files)
    if not (stages or generated or info.get("generated_ids")):
        raise ScaError(
            f"{folder}: not a recording; expected stages.safetensors or generate.safetensors "
            "beside inputs.safetensors"
        )
    return Recording(folder, inputs, stages, generated, info)


def write_recording(recording: Recording) -> None:
    """Writes the four files, info.json last: with it the recording is whole."""
    from safetensors.torch import save_file

    recording.folder.mkdir(parents=True, exist_ok=True)
    files = {
        "inputs": recording.inputs,
        "stages": recording.stages,
        "generate": recording.generated,
    }
    for name, tensors in files.items():
        # Cloned: several stages are views of one tensor, which safetensors refuses.
        whole = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(whole, recording.folder / f"{name}.safetensors")
    text = json.dumps(recording.info, indent=1) + "\n"
    (recording.folder / "info.json").write_text(text, encoding="utf-8")


def inputs_for(model: ScaModel, recording: Recording) -> Inputs:
    """A recording's inputs on the model's device.

    Raises:
        ScaError: naming the tensor that does not fit the model or the others.
    """
    where, config, on_file = recording.folder / "inputs.safetensors", model.config, recording.inputs
    side, grid = config.image_size, config.grid_size
    pixels_B3SS = _fitting(where, on_file, "pixel_values", (None, 3, side, side))
    embedding_BDHW = None
    if pixels_B3SS is None:
        shape = (None, config.width, grid, grid)
        of_stages = recording.folder / "stages.safetensors"
        embedding_BDHW = _fitting(of_stages, recording.stages, "image_embeddings", shape)

    prompts = {
        "boxes_R4": _fitting(where, on_file, "input_boxes", (None, None, 4)),
        "points_RP2": _fitting(where, on_file, "input_points", (None, None, None, 2)),
        "labels_RP": _fitting(where, on_file, "input_labels", (None, None, None)),
        "masks_R1HW": _fitting(where, on_file, "input_masks", (None, None, 1, 4 * grid, 4 * grid)),
    }
    shown = {name: value for name, value in prompts.items() if value is not None}
    if "points_RP2" not in shown:
        shown.pop("labels_RP", None)
    elif "labels_RP" in shown and shown["labels_RP"].shape != shown["points_RP2"].shape[:3]:
        raise ScaError(f"{where}: input_labels does not have one label for each of input_points")
    leading = {tuple(value.shape[:2]) for value in shown.values()}
    first = pixels_B3SS if pixels_B3SS is not None else embedding_BDHW
    if len(leading) > 1 or (leading and first is not None and len(first) != min(leading)[0]):
        images = "" if first is None else f" and {len(first)} images"
        raise ScaError(
            f"{where}: prompts have the leading sizes {sorted(leading)}{images}; expected the same "
            "(images, regions) in all of them"
        )
    num_images, num_regions = leading.pop() if leading else (0 if first is None else len(first), 0)
    forced = _forced_inputs(where, on_file, (num_images, num_regions), int(config.text.vocab_size))
    pixels, embedding, ids, attention, labels = (
        None if value is None else value.to(model.device)
        for value in (pixels_B3SS, embedding_BDHW, *forced)
    )
    return Inputs(
        num_images=num_images,
        num_regions=num_regions,
        tasks=_tasks(recording, num_images, num_regions),
        pixels=None if pixels is None else pixels.float(),
        embedding=None if embedding is None else embedding.float(),
        prompts={name: value.flatten(0, 1).to(model.device) for name, value in shown.items()},
        ids=ids,
        attention=attention,
        labels=labels,
    )


def _fitting(
    where: Path, tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...]
) -> Tensor | None:
    value = tensors.get(name)
    if value is None:
        return None
    if value.ndim != len(shape) or any(
        want not in (None, side) for side, want in zip(value.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ScaError(f"{where}: {name} is {tuple(value.shape)}, this model needs ({wanted})")
    return value


def _forced_inputs(
    where: Path, on_file: Mapping[str, Tensor], leading: tuple[int, int], vocabulary: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Ids, attention and labels, all (R, L); what is missing follows from the others."""
    for name in ("input_ids", "attention_mask", "labels"):
        value = on_file.get(name)
        if value is None:
            continue
        if value.ndim != 3 or tuple(value.shape[:2]) != leading:
            raise ScaError(f"{where}: {name} is {tuple(value.shape)}, expected {(*leading, 'any')}")
        if value.numel() and int(value.max()) >= vocabulary:
            raise ScaError(f"{where}: {name} has ids beyond the model's {vocabulary:,} tokens")
    ids, attention, labels = (
        on_file.get(name) for name in ("input_ids", "attention_mask", "labels")
    )
    if labels is not None and (ids is None or labels.shape[2] == ids.shape[2] + 1):
        labels = labels[:, :, 1:]
    if ids is None:
        if labels is None:
            return None, None, None
        ids = labels.clamp(min=0)
    if attention is None:
        attention = torch.ones_like(ids) if labels is None else (labels != -100).long()
    if labels is None:
        labels = ids.masked_fill(attention == 0, -100)
    if not ids.shape == attention.shape == labels.shape:
        shapes = {n: tuple(on_file[n].shape) for n in ("input_ids", "attention_mask", "labels")}
        raise ScaError(
            f"{where}: {shapes} do not belong together; labels have one id more in front"
        )
    return ids.flatten(0, 1), attention.flatten(0, 1), labels.flatten(0, 1)


def _tasks(recording: Recording, num_images: int, num_regions: int) -> list[str]:
    """One task per region; info.json has one per image, or one for all."""
    given = recording.info.get("tasks") or "caption"
    of_images = [given] * num_images if isinstance(given, str) else given
    if (
        not isinstance(of_images, list)
        or len(of_images) != num_images
        or not all(task in TASKS for task in of_images)
    ):
        raise ScaError(
            f"{recording.folder}/info.json: tasks is {given!r}, expected one of "
            f"{', '.join(TASKS)} for each of {num_images} images"
        )
    return [task for task in of_images for _ in range(num_regions)]


def _rows(values: object, where: str) -> list[list[int]]:
    """Nested lists to a list of rows of ids, however deep they are nested."""
    if not isinstance(values, list):
        raise ScaError(f"{where}: expected lists of ids")
    if all(isinstance(value, int) for value in values):
        return [values]
    return [row for value in values for row in _rows(value, where)]
