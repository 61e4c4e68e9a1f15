"""The parity gate: a plan is kept only if it computes what the model computes."""

# Shape letters: see `sca_batch/engines/graphs.py`

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sca_batch.checks.pictures import Pictures, read_pictures
from sca_batch.checks.record import default_boxes, drawn_picture
from sca_batch.engines import load_plan
from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.int8 import quantize
from sca_batch.engines.onnx import OnnxEngine, Precision, export, files_digest, onnx_files
from sca_batch.engines.openvino import OpenVinoEngine
from sca_batch.engines.plans import (
    BACKENDS,
    PlanFacts,
    building_folder,
    keep_plan,
    suffix_of,
    this_machine,
)
from sca_batch.engines.recipes import Recipe
from sca_batch.errors import MissingPackageError
from sca_batch.images.pixels import preprocess
from sca_batch.model.sca import Engine, ScaModel

__all__ = ["Built", "build_checked", "misses", "parity", "torch_outputs"]

# int8 is an approximation; on `sca-tiny` and the bundled sample it measured 0.98 and 1 of 23.
LEAST_INT8_MASK_IOU = 0.95
MOST_INT8_CAPTIONS = 0.2


@dataclass(frozen=True, slots=True)
class Built:
    """One graph's plan: where it was kept, or `missed`: why it was not."""

    graph: str
    facts: PlanFacts
    path: Path | None
    missed: tuple[str, ...]
    export_s: float
    build_s: float


def build_checked(
    model: ScaModel,
    graph: str,
    recipe: Recipe,
    folder: Path,
    *,
    weights: str,
    model_name: str,
    pictures: Pictures | None = None,
    on_phase: Callable[[str, int, int], bool] | None = None,
) -> Built:
    """Exports one graph, builds its plan, compares it with torch, and keeps it if it is equal.

    Args:
        weights: the model's `weights_digest`.
        pictures: what int8 is calibrated and compared with; the bundled sample if None.
        on_phase: told (phase, step, steps) while TensorRT builds; False stops it.

    Raises:
        ScaError: where a package or a device is missing, and where a library refuses the graph.
    """
    backend = recipe.backend
    machine = this_machine(model.device, [backend])
    version = machine.versions[backend]
    if version is None:
        module, extra = BACKENDS[backend]
        raise MissingPackageError(module, "building this plan", extra)
    facts = PlanFacts(
        graph=graph,
        backend=backend,
        version=version,
        precision=recipe.precision,
        weights=weights,
        graph_digest="",
        plan_digest="",
        plan_bytes=0,
        keep_fp32=recipe.keep_fp32,
        model=model_name,
    )
    comparing = None
    with building_folder(folder) as building:
        file = building / f"{facts.stem}.onnx"
        began = time.perf_counter()
        exported = Precision(recipe.exported_precision, recipe.keep_fp32)
        if recipe.precision == "int8":
            exact = building / "float32.onnx"
            export(model, graph, exact, precision=exported)
            pictures = pictures or read_pictures([], model.config.image_size)
            calibrating, comparing = pictures.calibrating(), pictures.comparing()
            quantize(exact, file, (pixels for pixels, _ in calibrating))
            seen: dict[str, int | str] = {
                "images": len(calibrating.refs),
                "sha256": calibrating.digest(),
            }
            facts = replace(facts, calibration=seen)
        else:
            export(model, graph, file, precision=exported)
        export_s = time.perf_counter() - began
        facts = replace(facts, graph_digest=files_digest(file))
        began = time.perf_counter()
        built = file
        if suffix_of(backend) == ".plan":
            from sca_batch.engines import tensorrt

            facts, built = tensorrt.build(
                model, facts, file, recipe, device=model.device, on_phase=on_phase
            )
        build_s = time.perf_counter() - began
        executable = suffix_of(backend) == ".onnx" or model.device.type == "cuda"
        engine = load_plan(built, facts) if executable else _on_cpu(file, recipe.precision)
        facts = replace(
            facts,
            plan_digest=files_digest(built),
            plan_bytes=sum(part.stat().st_size for part in onnx_files(built)),
            error=parity(model, graph, engine, comparing),
            executed=executable,
        )
        missed = misses(facts, recipe.tolerance)
        path = None if missed else keep_plan(built, facts, folder)
    return Built(graph, facts, path, tuple(missed), export_s, build_s)


def _on_cpu(file: Path, precision: str) -> Engine:
    """A GPU's ONNX file where there is no GPU: on ONNX Runtime, but it knows no bfloat16."""
    if precision == "bf16":
        return OpenVinoEngine(file, precision="bf16")
    return OnnxEngine(file)


@torch.inference_mode()
def parity(
    model: ScaModel, graph: str, engine: Engine, pictures: Pictures | None = None
) -> dict[str, float]:
    """Differences between an engine and torch in float32, on one image's worth of noise and boxes.

    `relative_error` and `cosine` are those of the worst output; `mask_iou` is the least IoU of
    masks, `iou_difference` the largest of SAM's scores, `captions` the number of the model's
    captions that change, where the graph has to do with them.

    An encoder given `pictures` is compared on those instead, since int8 holds on what looks like
    its calibration: `relative_error` and `cosine` are those of the worst image, `mean_mask_iou` is
    over the masks of all boxes, and `captions` is a count of `captions_compared`.
    """
    if pictures is not None:
        return _parity_on(model, engine, pictures)
    inputs = example_inputs(model, graph, images=1, regions=5)
    theirs, ours = torch_outputs(model, graph, inputs), engine(*inputs)
    found = {
        "relative_error": _largest([_relative(a, b) for a, b in zip(ours, theirs, strict=True)]),
        "cosine": -_largest([-_cosine(a, b) for a, b in zip(ours, theirs, strict=True)]),
    }
    if graph in ("decoder", "upscale"):
        masks, expected = (
            (o[0] if graph == "upscale" else model.predict_masks(o[0], o[1], inputs[0])) > 0
            for o in (ours, theirs)
        )
        found["mask_iou"] = float(_mask_ious(masks, expected).min())
    if graph in ("decoder", "mixer"):
        scores = [o[1] if graph == "mixer" else model.predict_iou(o[0]) for o in (ours, theirs)]
        found["iou_difference"] = float((scores[0] - scores[1]).abs().max())
    if graph in ("encoder", "mixer"):
        found["captions"] = float(_captions_that_differ(model, graph, engine))
    return found


def misses(facts: PlanFacts, tolerance: float | None = None) -> list[str]:
    """Reasons why a plan is not used: which measured value is beyond which limit."""
    limit = GRAPHS[facts.graph].tolerance[facts.precision] if tolerance is None else tolerance
    error = facts.error
    if not all(math.isfinite(value) for value in error.values()):
        return [f"{facts.graph}: values are not finite; name layers in keep_fp32"]
    found = []
    if error["relative_error"] > limit:
        found.append(
            f"{facts.graph}: relative error {error['relative_error']:.1e}, at most {limit:.0e}"
        )
    if facts.precision == "fp32" and error.get("captions"):
        found.append(f"{facts.graph}: {error['captions']:.0f} captions changed, expected none")
    if facts.precision == "int8" and error["mean_mask_iou"] < LEAST_INT8_MASK_IOU:
        overlap = f"mean mask IoU {error['mean_mask_iou']:.3f}"
        found.append(f"{facts.graph}: {overlap}, at least {LEAST_INT8_MASK_IOU}")
    compared = error.get("captions_compared", 0)
    if facts.precision == "int8" and error["captions"] > MOST_INT8_CAPTIONS * compared:
        found.append(
            f"{facts.graph}: {error['captions']:.0f} of {compared:.0f} captions changed, at most "
            f"{MOST_INT8_CAPTIONS:.0%}; calibrate on more images like yours"
        )
    return found


@torch.inference_mode()
def torch_outputs(model: ScaModel, graph: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs a graph should give: the model's own modules in float32, without engines."""
    outputs = build_graph(model, graph)(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _parity_on(model: ScaModel, engine: Engine, pictures: Pictures) -> dict[str, float]:
    errors, cosines, overlaps = [], [], []
    differing = compared = 0
    with _plain_torch(model):
        for pixels, boxes in pictures:
            exact, ours = model.encode_image(pixels), engine(pixels)[0]
            errors.append(_relative(ours, exact))
            cosines.append(_cosine(ours, exact))
            (masks, captions), (expected, expected_captions) = (
                _described(model, embedding, boxes) for embedding in (ours, exact)
            )
            overlaps += _mask_ious(masks, expected).flatten().tolist()
            differing += sum(a != b for a, b in zip(captions, expected_captions, strict=True))
            compared += len(captions)
    return {
        "relative_error": _largest(errors),
        "cosine": -_largest([-cosine for cosine in cosines]),
        "mean_mask_iou": sum(overlaps) / len(overlaps),
        "captions": float(differing),
        "captions_compared": float(compared),
    }


def _captions_that_differ(model: ScaModel, graph: str, engine: Engine) -> int:
    """Greedy captions of three boxes on a drawn picture, with the engine and without."""
    size = model.config.image_size
    picture = drawn_picture(size)
    pixels = torch.from_numpy(preprocess(picture, size))[None].to(model.device)
    # The picture is as wide as the model's frame, so that its pixels are the frame's.
    boxes = torch.tensor(default_boxes(picture.shape[:2]), device=model.device)
    answers = []
    with _plain_torch(model):
        for engines in ({}, {graph: engine}):
            model.engines = engines
            answers.append(_captions(model, model.encode_image(pixels), boxes))
    return sum(a != b for a, b in zip(*answers, strict=True))


@contextmanager
def _plain_torch(model: ScaModel) -> Iterator[None]:
    """The model in float32 without engines, for a while."""
    before, dtype = model.engines, model.autocast_dtype
    try:
        model.engines, model.autocast_dtype = {}, None
        yield
    finally:
        model.engines, model.autocast_dtype = before, dtype


def _captions(model: ScaModel, embedding: Tensor, boxes: Tensor) -> list[tuple[int, ...]]:
    queries = model.region_queries(embedding, boxes_R4=boxes).queries
    captions = model.generate(queries, num_beams=1)
    return [tuple(b[0].ids) if b else () for heads in captions for b in heads]


def _described(
    model: ScaModel, embedding: Tensor, boxes: Tensor
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The single mask of each box, (R, 1, 4H, 4W) bool, and its captions."""
    boxes = boxes.to(embedding.device)
    tokens, features = model.fuse_prompts(embedding, boxes_R4=boxes)
    masks = model.predict_masks(tokens, features, embedding)[:, :1] > 0
    return masks, _captions(model, embedding, boxes)


def _mask_ious(masks: Tensor, expected: Tensor) -> Tensor:
    """IoU mask by mask, (R, M); of two empty masks 1."""
    union = (masks | expected).flatten(2).sum(-1)
    both = (masks & expected).flatten(2).sum(-1)
    return torch.where(union == 0, 1.0, both / union.clamp(min=1))


def _largest(values: Sequence[float]) -> float:
    """The largest value; NaN where one is, which Python's own `max` lets pass behind a number."""
    return float(np.max(values))


def _relative(ours: Tensor, theirs: Tensor) -> float:
    difference = torch.linalg.vector_norm(ours.double() - theirs.double())
    return float(difference / torch.linalg.vector_norm(theirs.double()).clamp(min=1e-12))


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.double().flatten(), theirs.double().flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12))


def describe_error(error: Mapping[str, float]) -> str:
    """One line for people."""
    parts = [f"error {error['relative_error']:.1e}"] if error else []
    if "mask_iou" in error:
        parts.append(f"mask IoU {error['mask_iou']:.4f}")
    if "mean_mask_iou" in error:
        parts.append(f"mean mask IoU {error['mean_mask_iou']:.3f}")
    if "captions_compared" in error:
        parts.append(f"{error['captions']:.0f} of {error['captions_compared']:.0f} captions differ")
    elif error.get("captions"):
        parts.append(f"{error['captions']:.0f} captions differ")
    return ", ".join(parts)
