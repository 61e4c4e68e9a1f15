"""Engines: compiled stand-ins for parts of a model, with the same inputs, outputs and meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sca_batch.engines.graphs import GRAPHS
from sca_batch.engines.plans import BACKENDS, PlanFacts, read_plans, refusal, this_machine
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import weights_digest
from sca_batch.model.sca import Engine, ScaModel

__all__ = ["ENGINES", "Chosen", "load_plan", "plan_precisions", "use_engines"]

# What `--engine` may name, and the backends that it stands for.
ENGINES: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
    "auto": tuple(BACKENDS),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The engine of a model; `label` goes into the run's fingerprint, `why` to the user.

    `plans` are the file names of those in use; `refused` are plans of this model that could not be
    used, each with its reason.
    """

    engine: str
    label: str
    why: str
    plans: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def use_engines(
    model: ScaModel,
    engine: str,
    folder: Path,
    *,
    precisions: Sequence[str],
    int8: bool = False,
    only: Sequence[str] | None = None,
    model_name: str = "MODEL",
    trusted: bool = False,
) -> Chosen:
    """Gives the model the plans of a folder that fit it, its device and one of the precisions.

    Graphs without a plan run in torch. `auto` takes what fits, and torch where nothing does. With
    `int8` the encoder is the plan of that precision, which is asked for and never chosen. `only`
    names plans that were chosen before, elsewhere: no others are looked at.

    Raises:
        ScaError: for an engine asked for by name that has no plan, or one that may not be used;
            for an int8 encoder that is not there.
    """
    if engine == "torch":
        if int8:
            raise ScaError("--int8 with --engine torch: it is a plan of openvino or onnx")
        return Chosen("torch", "torch", "torch, as asked")
    _check_device(engine, model.device)
    plans = read_plans(folder) if folder.is_dir() else []
    if only is not None:
        plans = [(path, facts) for path, facts in plans if path.name in only]
    if int8:
        precisions = ("int8", *precisions)
    elif engine == "auto" and not plans:
        return Chosen("torch", "torch", f"torch: no plans in {folder}")
    machine = this_machine(
        model.device, sorted({f.backend for _, f in plans if not isinstance(f, str)})
    )
    # Plans of other models may lie beside: they are nobody's mistake.
    weights = weights_digest(model)
    ours = [
        (path, facts)
        for precision in precisions
        for path, facts in plans
        if not isinstance(facts, str) and facts.weights == weights and facts.precision == precision
    ]
    refused: list[str] = []
    for backend in ENGINES[engine]:
        usable: dict[str, tuple[Path, PlanFacts]] = {}
        reasons: dict[str, str] = {}
        for path, facts in ours:
            if facts.backend == backend:
                reason = refusal(path, facts, machine, weights=weights, trusted=trusted)
                if reason is None:
                    usable.setdefault(facts.graph, (path, facts))
                else:
                    reasons.setdefault(facts.graph, reason)
        missed = [reason for graph, reason in reasons.items() if graph not in usable]
        if missed and engine != "auto":
            raise ScaError(missed[0])
        refused += missed
        if int8 and ("encoder" not in usable or usable["encoder"][1].precision != "int8"):
            if "encoder" in reasons:
                refused.append(reasons["encoder"])
            continue
        if usable:
            model.engines = {g: load_plan(path, facts) for g, (path, facts) in usable.items()}
            return _chosen(backend, list(usable.values()), folder, refused)
    if int8:
        backend = ENGINES[engine][0]
        raise ScaError(
            f"--int8: {refused[0] if refused else f'no int8 plan of the encoder in {folder}'}. "
            f"Build it: sca engine build --model {model_name} --backend {backend} --precision int8"
        )
    wanted = " or ".join(precisions)
    if engine != "auto":
        raise ScaError(
            f"--engine {engine}: no {wanted} plan of this model in {folder}. Build it: "
            f"sca engine build --model {model_name} --backend {engine} --precision {precisions[0]}"
        )
    why = f"torch: no {wanted} plan in {folder} fits this model and device"
    return Chosen("torch", "torch", why, refused=tuple(refused))


def plan_precisions(model: ScaModel, dtype: str) -> tuple[str, ...]:
    """The precisions of plans that a run in this `--dtype` may use, the preferred one first.

    On a GPU `auto` means half precision, of whichever kind was built.
    """
    if dtype == "auto" and model.device.type == "cuda":
        return ("fp16", "bf16")
    return (_SHORT[model.autocast_dtype],)


_SHORT = {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def _chosen(
    backend: str, plans: Sequence[tuple[Path, PlanFacts]], folder: Path, refused: Sequence[str]
) -> Chosen:
    built = {facts.graph: facts.precision for _, facts in plans}
    rest = [graph for graph in GRAPHS if graph not in built]
    of_precision = {
        precision: [g for g in GRAPHS if g in built and built[g] == precision]
        for precision in sorted(set(built.values()), reverse=True)
    }
    label = f"{backend}-{'+'.join(of_precision)}"
    parts = [f"{precision} for {', '.join(names)}" for precision, names in of_precision.items()]
    why = f"{backend} {'; '.join(parts)}"
    if rest:
        label += f"[{','.join(g for g in GRAPHS if g in built)}]"
        why += f"; torch for {', '.join(rest)}: no plan in {folder}"
    engine = next(name for name, backends in ENGINES.items() if backend in backends)
    return Chosen(engine, label, why, tuple(path.name for path, _ in plans), tuple(refused))


def _check_device(engine: str, device: torch.device) -> None:
    kind = {"openvino": "cpu", "onnx": "cpu", "tensorrt": "cuda"}.get(engine, device.type)
    if device.type != kind:
        others = "openvino, onnx" if kind == "cuda" else "tensorrt"
        raise ScaError(
            f"--engine {engine} runs on {kind} devices, and this run is on {device}. Choose "
            f"--device {kind}, or --engine {others} or torch"
        )


def load_plan(path: Path, facts: PlanFacts) -> Engine:
    """The callable of a plan that was found usable."""
    if facts.backend == "onnx":
        from sca_batch.engines.onnx import OnnxEngine

        return OnnxEngine(path)
    if facts.backend == "openvino":
        from sca_batch.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(path, precision=facts.precision, static=facts.graph == "encoder")
    from sca_batch.engines.tensorrt import TensorRtEngine

    return TensorRtEngine(path, facts)
