"""The parity gate: a plan is kept only if it computes what the model computes."""

# Shape letters: see `sca_batch/engines/graphs.py`

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sca_batch.engines import load_plan
from sca_batch.engines.graphs import GRAPHS, example_inputs
from sca_batch.engines.onnx import OnnxEngine, Precision, export, files_digest, onnx_files
from sca_batch.engines.plans import PlanFacts, building_folder, keep_plan, suffix_of, this_machine
from sca_batch.engines.recipes import Recipe
from sca_batch.errors import MissingPackageError
from sca_batch.images import preprocess
from sca_batch.model.sca import Engine, ScaModel

__all__ = ["Built", "build_checked", "misses", "parity", "torch_outputs"]


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
    on_phase: Callable[[str, int, int], bool] | None = None,
) -> Built:
    """Exports one graph, builds its plan, compares it with torch, and keeps it if it is equal.

    Args:
        weights: the model's `weights_digest`.
        on_phase: told (phase, step, steps) while TensorRT builds; False stops it.

    Raises:
        ScaError: where a package or a device is missing, and where a library refuses the graph.
    """
    backend = recipe.backend
    machine = this_machine(model.device, [backend])
    version = machine.versions[backend]
    if version is None:
        raise MissingPackageError(backend, "building this plan", "see `sca doctor`")
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
    with building_folder(folder) as building:
        file = building / f"{facts.stem}.onnx"
        # bf16 is how a float32 file is run; fp16 is in the file.
        exported = "fp16" if recipe.precision == "fp16" else "fp32"
        began = time.perf_counter()
        export(model, graph, file, precision=Precision(exported, recipe.keep_fp32))
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
        engine: Engine = load_plan(built, facts) if executable else OnnxEngine(file)
        facts = replace(
            facts,
            plan_digest=files_digest(built),
            plan_bytes=sum(part.stat().st_size for part in onnx_files(built)),
            error=parity(model, graph, engine),
            executed=executable,
        )
        missed = misses(facts, recipe.tolerance)
        path = None if missed else keep_plan(built, facts, folder)
    return Built(graph, facts, path, tuple(missed), export_s, build_s)


@torch.inference_mode()
def parity(model: ScaModel, graph: str, engine: Engine) -> dict[str, float]:
    """How an engine differs from torch in float32, on one image's worth of noise and boxes.

    `relative_error` and `cosine` are those of the worst output; `mask_iou` is the least IoU of
    masks, `iou_difference` the largest of SAM's scores, `captions` the number of the model's
    captions that change, where the graph has to do with them.
    """
    inputs = example_inputs(model, graph, images=1, regions=5)
    theirs, ours = torch_outputs(model, graph, inputs), engine(*inputs)
    found = {
        "relative_error": max(_relative(a, b) for a, b in zip(ours, theirs, strict=True)),
        "cosine": min(_cosine(a, b) for a, b in zip(ours, theirs, strict=True)),
    }
    if graph in ("decoder", "upscale"):
        masks, expected = (
            (o[0] if graph == "upscale" else model.predict_masks(*o)) > 0 for o in (ours, theirs)
        )
        union = (masks | expected).flatten(2).sum(-1).clamp(min=1)
        agreeing = (masks & expected).flatten(2).sum(-1) / union
        agreeing[(masks | expected).flatten(2).sum(-1) == 0] = 1
        found["mask_iou"] = float(agreeing.min())
    if graph in ("decoder", "mixer"):
        scores = [o[1] if graph == "mixer" else model.predict_iou(o[0]) for o in (ours, theirs)]
        found["iou_difference"] = float((scores[0] - scores[1]).abs().max())
    if graph in ("encoder", "mixer"):
        found["captions"] = float(_captions_that_differ(model, graph, engine))
    return found


def misses(facts: PlanFacts, tolerance: float | None = None) -> list[str]:
    """What keeps a plan from being used: which measured value is beyond which limit."""
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
    return found


@torch.inference_mode()
def torch_outputs(model: ScaModel, graph: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a graph should give: the model's own modules in float32, without engines."""
    from sca_batch.engines.graphs import build_graph

    outputs = build_graph(model, graph)(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _captions_that_differ(model: ScaModel, graph: str, engine: Engine) -> int:
    """Greedy captions of three boxes on a drawn picture, with the engine and without."""
    from sca_batch.checks.record import default_boxes, drawn_picture

    size = model.config.image_size
    picture = drawn_picture(size)
    pixels = torch.from_numpy(preprocess(picture, size))[None].to(model.device)
    # The picture is as wide as the model's frame, so that its pixels are the frame's.
    boxes = torch.tensor(default_boxes(picture.shape[:2]), device=model.device)
    before, dtype = model.engines, model.autocast_dtype
    answers = []
    try:
        model.autocast_dtype = None
        for engines in ({}, {graph: engine}):
            model.engines = engines
            queries = model.region_queries(model.encode_image(pixels), boxes_R4=boxes).queries
            captions = model.generate(queries, num_beams=1)
            answers.append([beams[0].ids if beams else () for heads in captions for beams in heads])
    finally:
        model.engines, model.autocast_dtype = before, dtype
    return sum(a != b for a, b in zip(*answers, strict=True))


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
    if error.get("captions"):
        parts.append(f"{error['captions']:.0f} captions differ")
    return ", ".join(parts)
