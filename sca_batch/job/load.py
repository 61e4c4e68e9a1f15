"""From a request to a pipeline with its model, in the process that works."""

from __future__ import annotations

import logging
from typing import cast

import torch
import transformers

from sca_batch import __version__
from sca_batch.captioners.sca import ScaCaptioner
from sca_batch.engines import plan_precisions, use_engines
from sca_batch.job.request import CaptionRequest, EngineName, ModelReport
from sca_batch.job.worker import ShardWorker, StageClock
from sca_batch.model.checkpoint import weights_digest
from sca_batch.model.load import load_model
from sca_batch.model.sca import ScaModel
from sca_batch.pipeline.pipeline import Pipeline, Watch, unwatched

__all__ = ["load_pipeline", "load_worker"]

log = logging.getLogger(__name__)


def load_pipeline(
    request: CaptionRequest, device: str, watch: Watch = unwatched
) -> tuple[Pipeline, ModelReport]:
    """The pipeline of a request on one device, and what is to be known of its model.

    Raises:
        ScaError: for a model or an engine that cannot be had.
    """
    model, report = _load_model(request, device)
    batches = request.batching.on(cpu=model.device.type == "cpu", threads=torch.get_num_threads())
    captioner = ScaCaptioner(model, request.captions)
    pipeline = Pipeline(model, captioner, request.regions, batches, request.source.read, watch)
    return pipeline, report


def load_worker(request: CaptionRequest, device: str, workers: int) -> ShardWorker:
    """A worker that shares the processor with `workers - 1` others."""
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if on_cpu and workers > 1:
        # More threads than cores would only get in each other's way. Sums depend on how many
        # share them, in their last bits.
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    clock = StageClock()
    pipeline, report = load_pipeline(request, device, clock.stage)
    return ShardWorker(pipeline, clock, report)


def _load_model(request: CaptionRequest, device: str) -> tuple[ScaModel, ModelReport]:
    wanted = request.model
    model = load_model(wanted.model, device=device, dtype=wanted.dtype)
    chosen = use_engines(
        model,
        wanted.engine,
        wanted.engine_dir,
        precisions=plan_precisions(model, wanted.dtype),
        int8=wanted.int8,
        only=wanted.plans,
        model_name=wanted.model,
        trusted=wanted.trust_engine,
    )
    for reason in chosen.refused:
        log.warning("Not used: %s", reason)
    asked = "engine" in request.given
    why = chosen.why if asked or wanted.engine != "torch" else "torch, as this run began"
    dtype = model.autocast_dtype
    versions = {
        "sca": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    # The run keeps what was found, so that a plan built tonight does not change it tomorrow.
    return model, ModelReport(
        weights=weights_digest(model),
        dtype="float32" if dtype is None else str(dtype).removeprefix("torch."),
        device=str(model.device),
        engine=cast(EngineName, chosen.engine),
        engine_label=chosen.label,
        engine_why=why,
        plans=chosen.plans,
        domain=model.config.domain,
        versions=versions,
    )
