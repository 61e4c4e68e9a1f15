"""Writing what every stage of a model produces on given inputs."""

from __future__ import annotations

def record(
    model: ScaModel,
    folder: Path,
    *,
    image: str | Path | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    points: Sequence[Sequence[Sequence[float]]] | None = None,
    task: str = "caption",
    captions: Sequence[str] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes what every stage of a model produces on one image, and returns its info.json.

    Args:
        image: a file; without one, a drawn test picture.
        boxes: x0, y0, x1, y1 in the image's pixels, one per region.
        points: one list of points per region, each x, y in the image's pixels, then 1 (on the
            region, the default) or 0 (off it). With boxes too, both are one region's prompt.
        captions: what is teacher-forced, one per region; without them, the greedy captions.
        origin: more entries for info.json: where the model came from, say.
    """
    config = model.config
    rgb = _test_picture(config.image_size) if image is None else read_image(str(image)).rgb
    size_hw = rgb.shape[0], rgb.shape[1]
    if boxes is None and points is None:
        boxes = _default_boxes(size_hw)
    on_file: dict[str, Tensor] = {
        "pixel_values": torch.from_numpy(preprocess(rgb, config.image_size))[None],
        **_prompts_in_model_frame(boxes, points, size_hw, config.image_size),
    }
    num_regions = len(boxes if boxes is not None else points or [])
    if captions is not None and len(captions) != num_regions:
        raise ScaError(f"{len(captions)} captions for {num_regions} regions; expected one each")
    if task not in TASKS:
        raise ScaError(f"task {task!r}: expected one of {', '.join(TASKS)}")

    info: dict[str, Any] = {
        "architecture": "ScaMultitaskV2Model",
        "tasks": [task],
        "batch": 1,
        "regions": num_regions,
        "prompt": "+".join(n for n, v in (("box", boxes), ("point", points)) if v is not None),
        "image": None if image is None else Path(image).name,
        "image_size_hw": list(size_hw),
        "bos_token_id": _bos_token_id(model, {}),
        "eos_token_id": config.eos_token_id,
        "generate": GENERATE_SETTINGS,
        "n_params": sum(p.numel() for p in model.parameters()),
        "n_trainable": num_trainable(model),
        "device": model.device.type,
        "dtype": str(model.autocast_dtype or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
        **(origin or {}),
    }
    inputs = _inputs_from(model, folder, on_file, {}, info)
    ours = _run_stages(model, inputs, wanted=frozenset({"query_embeddings"}))
    generated = {
        name: _ids_as_recorded(model, ours, inputs, settings)
        for name, settings in GENERATE_SETTINGS.items()
    }
    forced = _forced_ids(model, captions, generated["greedy"][0, :, 0])
    on_file |= _teacher_forcing(forced, config.eos_token_id)
    inputs = _inputs_from(model, folder, on_file, {}, info)
    stages = _run_stages(model, inputs, wanted=frozenset(STAGES))
    behind = {name: stages.pop(f"generate.{name}") for name in GENERATED}

    info["captions"] = [forced]
    info["loss"] = float(stages["loss"])
    info["generated_ids"] = {n: ids.flatten(0, 2).tolist() for n, ids in generated.items()}
    _write(folder, on_file, stages, generated | behind, info)
    return info


def num_trainable(model: ScaModel) -> int:
    """Parameters that the paper trains: mixer, projection and task tokens."""
    return sum(
        p.numel() for module in model.trainable_modules().values() for p in module.parameters()
    )


def _ids_as_recorded(
    model: ScaModel, ours: Mapping[str, Tensor], inputs: _Inputs, settings: Mapping[str, int]
) -> Tensor:
    """Ids as the reference returns them: a BOS that was never fed, ids, padding with the end id."""
    known, problem = _generation_settings("", dict(settings))
    assert known is not None, problem
    rows = _generate(model, ours, inputs, *known)
    bos, eos = _bos_token_id(model, {}), model.config.eos_token_id
    width = 1 + max(len(ids) for ids in rows)
    padded = [[bos, *ids, *[eos] * (width - 1 - len(ids))] for ids in rows]
    shape = inputs.num_images, inputs.num_regions, model.config.num_caption_heads, width
    return torch.tensor(padded, dtype=torch.long).reshape(shape)


def _forced_ids(
    model: ScaModel, captions: Sequence[str] | None, greedy_NL: Tensor
) -> list[list[int]]:
    eos = model.config.eos_token_id
    if captions is None:
        rows = [_through_end(row[1:], eos) for row in greedy_NL.tolist()]
        return [row if row[-1] == eos else [*row, eos] for row in rows]
    if model.tokenizer is None:
        raise ScaError("captions need a tokenizer, and this model has none beside its weights")
    return [model.tokenizer.encode(caption) for caption in captions]


def _teacher_forcing(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    width = max(len(row) for row in rows)
    ids = [[*row, *[pad] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    labels = [[-100, *row, *[-100] * (width - len(row))] for row in rows]
    named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor([value]) for name, value in named.items()}


def _prompts_in_model_frame(
    boxes: Sequence[Sequence[float]] | None,
    points: Sequence[Sequence[Sequence[float]]] | None,
    size_hw: tuple[int, int],
    image_size: int,
) -> dict[str, Tensor]:
    prompts: dict[str, Tensor] = {}
    if boxes is not None and points is not None and len(boxes) != len(points):
        raise ScaError(
            f"{len(boxes)} boxes and {len(points)} points; with both, each region has one of each"
        )
    if not (boxes or points):
        raise ScaError("no region to record; give boxes or points")
    if boxes is not None:
        framed = to_model_frame(boxes, size_hw, image_size)
        prompts["input_boxes"] = torch.from_numpy(framed)[None]
    if points is not None:
        counts = {len(of_region) for of_region in points}
        if len(counts) > 1 or 0 in counts:
            raise ScaError(
                f"regions have {sorted(counts)} points; one recording holds regions with the same "
                "number of points, since SAM attends to padding"
            )
        framed = to_model_frame([[p[:2] for p in of_region] for of_region in points], size_hw, image_size)
        prompts["input_points"] = torch.from_numpy(framed)[None]
        labels = [[int(p[2]) if len(p) > 2 else 1 for p in of_region] for of_region in points]
        prompts["input_labels"] = torch.tensor([labels])
    return prompts


def _test_picture(side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Three shapes on a gradient: the same everywhere, and different in each default box."""
    height, width = side * 3 // 4, side
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([40 + 120 * x / width, 60 + 120 * y / height, np.full_like(x, 90)], axis=-1)
    rgb[(x - 0.25 * width) ** 2 + (y - 0.35 * height) ** 2 < (0.15 * width) ** 2] = (220, 40, 40)
    rgb[height // 2 : height * 7 // 8, width // 2 : width * 7 // 8] = (40, 160, 220)
    rgb[(abs(x - 0.7 * width) + abs(y - 0.2 * height)) < 0.12 * width] = (240, 220, 60)
    return rgb.astype(np.uint8)


def _default_boxes(size_hw: tuple[int, int]) -> list[list[float]]:
    height, width = size_hw
    shares = ([0.1, 0.15, 0.4, 0.55], [0.5, 0.5, 0.875, 0.875], [0.58, 0.04, 0.82, 0.36])
    return [[x0 * width, y0 * height, x1 * width, y1 * height] for x0, y0, x1, y1 in shares]


