"""Writing down what every stage of a model produces on given inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sca_batch.boxes import to_model_frame
from sca_batch.checks.generation import GENERATE_SETTINGS, bos_token_id, captions_in, settings_of
from sca_batch.checks.recordings import Recording, inputs_for, write_recording
from sca_batch.checks.stages import GENERATED, STAGES, generate_ids, run_stages
from sca_batch.errors import ScaError
from sca_batch.images.decode import read_image
from sca_batch.images.pixels import preprocess
from sca_batch.model.checkpoint import parameter_counts
from sca_batch.model.config import ARCHITECTURES, TASKS
from sca_batch.model.sca import ScaModel

__all__ = ["record"]

Points = Sequence[Sequence[Sequence[float]]]


def record(
    model: ScaModel,
    folder: Path,
    *,
    image: str | Path | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    points: Points | None = None,
    task: str = "caption",
    captions: Sequence[str] | None = None,
    origin: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Writes a recording of the model on one image, and returns its info.json.

    Args:
        image: a file; without one, a drawn test picture.
        boxes: x0, y0, x1, y1 in the image's pixels, one per region; without boxes and points,
            three boxes.
        points: one list of points per region: x, y in the image's pixels, then 1 (on the region,
            the default) or 0 (off it). With boxes too, both are one region's prompt.
        captions: what is teacher-forced, one per region; without them, the greedy captions.
        origin: more entries for info.json: where the model came from.
    """
    rgb = drawn_picture(model.config.image_size) if image is None else read_image(str(image)).rgb
    size_hw = rgb.shape[0], rgb.shape[1]
    if boxes is None and points is None:
        boxes = default_boxes(size_hw)
    inputs: dict[str, Tensor] = {
        "pixel_values": torch.from_numpy(preprocess(rgb, model.config.image_size))[None],
        **_prompts(boxes, points, size_hw, model.config.image_size),
    }
    num_regions = len(boxes if boxes is not None else points or ())
    if captions is not None and len(captions) != num_regions:
        raise ScaError(f"{len(captions)} captions for {num_regions} regions; expected one each")
    if task not in TASKS:
        raise ScaError(f"task {task!r}: expected one of {', '.join(TASKS)}")

    num_parameters, num_trainable = parameter_counts(model)
    info: dict[str, object] = {
        "architecture": ARCHITECTURES[0],
        "tasks": [task],
        "batch": 1,
        "regions": num_regions,
        "prompt": "+".join(n for n, v in (("box", boxes), ("point", points)) if v is not None),
        "image": None if image is None else Path(image).name,
        "image_size_hw": list(size_hw),
        "generate": GENERATE_SETTINGS,
        "bos_token_id": bos_token_id(model, {}),
        "eos_token_id": model.config.eos_token_id,
        "n_params": num_parameters,
        "n_trainable": num_trainable,
        "device": model.device.type,
        "dtype": str(model.autocast_dtype or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
        **(origin or {}),
    }
    generated = _generated_ids(model, Recording(folder, inputs, {}, {}, info))
    forced = _forced_ids(model, captions, generated["greedy"][0, :, 0].tolist())
    inputs |= _teacher_forcing(forced, model.config.eos_token_id)

    to_run = inputs_for(model, Recording(folder, inputs, {}, {}, info))
    stages = run_stages(model, to_run, wanted=frozenset(STAGES))
    beside_ids = {name: stages.pop(f"generate.{name}") for name in GENERATED}
    info["captions"] = [forced]
    info["loss"] = float(stages["loss"])
    info["generated_ids"] = {n: ids.flatten(0, 2).tolist() for n, ids in generated.items()}
    write_recording(Recording(folder, inputs, stages, generated | beside_ids, info))
    return info


def _generated_ids(model: ScaModel, recording: Recording) -> dict[str, Tensor]:
    """Ids as the reference returns them: a BOS that was never fed, ids, padding with the end id."""
    inputs = inputs_for(model, recording)
    stages = run_stages(model, inputs, wanted=frozenset({"query_embeddings"}))
    bos, eos = bos_token_id(model, recording.info), model.config.eos_token_id
    generated: dict[str, Tensor] = {}
    for name in GENERATE_SETTINGS:
        settings = settings_of(name, recording.info)
        assert not isinstance(settings, str), settings
        rows = [[bos, *ids] for ids in generate_ids(model, stages, inputs, settings)]
        shape = inputs.num_images, inputs.num_regions, model.config.num_caption_heads, -1
        generated[name] = _padded(rows, eos).reshape(shape)
    return generated


def _forced_ids(
    model: ScaModel, captions: Sequence[str] | None, greedy: list[list[int]]
) -> list[list[int]]:
    eos = model.config.eos_token_id
    if captions is None:
        rows = captions_in(greedy, bos_token_id(model, {}), eos)
        return [row if row[-1] == eos else [*row, eos] for row in rows]
    if model.tokenizer is None:
        raise ScaError("captions need a tokenizer, and this model has none beside its weights")
    return [model.tokenizer.encode(caption) for caption in captions]


def _teacher_forcing(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    return {
        "input_ids": _padded(rows, pad)[None],
        "attention_mask": _padded([[1] * len(row) for row in rows], 0)[None],
        "labels": _padded([[-100, *row] for row in rows], -100)[None],
    }


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def _prompts(
    boxes: Sequence[Sequence[float]] | None,
    points: Points | None,
    size_hw: tuple[int, int],
    image_size: int,
) -> dict[str, Tensor]:
    """Prompts in the model's frame, float64 as the reference's processor leaves them."""
    if not (boxes or points):
        raise ScaError("no region to record; give a box or a point")
    if boxes is not None and points is not None and len(boxes) != len(points):
        raise ScaError(
            f"{len(boxes)} boxes and points for {len(points)} regions; with both, each region has "
            "a box and points"
        )
    prompts: dict[str, Tensor] = {}
    if boxes is not None:
        prompts["input_boxes"] = torch.from_numpy(to_model_frame(boxes, size_hw, image_size))[None]
    if points is not None:
        counts = sorted({len(of_region) for of_region in points})
        if len(counts) > 1 or counts == [0]:
            raise ScaError(
                f"regions have {' or '.join(map(str, counts))} points; the regions of one "
                "recording have the same number, since SAM attends to padding"
            )
        xy = [[point[:2] for point in of_region] for of_region in points]
        labels = [[int((*p, 1)[2]) for p in of_region] for of_region in points]
        prompts["input_points"] = torch.from_numpy(to_model_frame(xy, size_hw, image_size))[None]
        prompts["input_labels"] = torch.tensor([labels])
    return prompts


def drawn_picture(side: int) -> npt.NDArray[np.uint8]:
    """Three shapes on a gradient, each in one of the default boxes."""
    height, width = side * 3 // 4, side
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([40 + 120 * x / width, 60 + 120 * y / height, np.full(x.shape, 90.0)], axis=-1)
    rgb[(x - 0.25 * width) ** 2 + (y - 0.35 * height) ** 2 < (0.15 * width) ** 2] = (220, 40, 40)
    rgb[height // 2 : height * 7 // 8, width // 2 : width * 7 // 8] = (40, 160, 220)
    rgb[abs(x - 0.7 * width) + abs(y - 0.2 * height) < 0.12 * width] = (240, 220, 60)
    return rgb.astype(np.uint8)


def default_boxes(size_hw: tuple[int, int]) -> list[list[float]]:
    height, width = size_hw
    shares = ([0.1, 0.15, 0.4, 0.55], [0.5, 0.5, 0.875, 0.875], [0.58, 0.04, 0.82, 0.36])
    return [[x0 * width, y0 * height, x1 * width, y1 * height] for x0, y0, x1, y1 in shares]
