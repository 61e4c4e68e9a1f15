"""A model against a recording, stage by stage."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

@dataclass(frozen=True, slots=True)
class StageResult:
    """How one stage compares. `ok` is None for what was not compared; `note` says why.

    `max_error` is the largest absolute difference, or for token ids the number of rows that
    differ; it is None where nothing was compared and not finite where a value was not.
    """

    stage: str
    max_error: float | None
    tolerance: float | None
    ok: bool | None
    note: str = ""


def check(
    model: ScaModel, recording: Path, *, atol: Mapping[str, float] | None = None
) -> list[StageResult]:
    """Compares a model, wherever and however it runs, with a recording, stage by stage.

    Every stage is computed from the recording's inputs through the model's own earlier stages.
    `atol` replaces tolerances by stage name or pattern (`lm_*`).

    Raises:
        ScaError: where the folder is no recording, an input does not fit the model, or `atol`
            names no stage.
    """
    inputs_on_file, stages, generated, info = _read_recording(recording)
    tolerances = _tolerances(generated, atol or {})
    inputs = _inputs_from(model, recording, inputs_on_file, stages, info)
    ours = _run_stages(model, inputs, wanted=frozenset(stages) | _stages_behind(generated))

    results = [
        StageResult(f"inputs.{name}", None, None, None, "unknown tensor, not used")
        for name in sorted(inputs_on_file.keys() - set(_INPUTS))
    ]
    for name, tolerance in STAGES.items():
        if name in stages:
            stage_tolerance = tolerances.get(name, tolerance)
            results.append(_compare_stage(name, stages[name], ours, stage_tolerance, inputs))
    for name, tolerance in GENERATED.items():
        if name in generated:
            key = f"generate.{name}"
            stage_tolerance = tolerances.get(key, tolerance)
            results.append(_compare(key, generated[name], ours.get(key), stage_tolerance))
    settings = info.get("generate") if isinstance(info.get("generate"), dict) else {}
    for name in sorted(generated.keys() - GENERATED.keys()):
        key = f"generate.{name}"
        results.append(
            _compare_ids(model, key, generated[name], ours, inputs, settings, info)
            if _are_ids(generated[name])
            else StageResult(key, None, None, None, "unknown tensor, not compared")
        )
    results += [
        StageResult(name, None, None, None, "unknown tensor, not compared")
        for name in sorted(stages.keys() - STAGES.keys())
    ]
    if not any(result.ok is not None for result in results):
        raise ScaError(
            f"{recording}: nothing in it can be compared: "
            + "; ".join(f"{result.stage}: {result.note}" for result in results[:4])
        )
    return results


def verdict(results: Sequence[StageResult]) -> tuple[bool, str]:
    """Whether every compared stage is within its tolerance, and one sentence that says so."""
    compared = [result for result in results if result.ok is not None]
    failed = [result.stage for result in compared if not result.ok]
    skipped = len(results) - len(compared)
    rest = f" ({skipped} not compared)" if skipped else ""
    if failed:
        return False, f"FAILED: {len(failed)} of {len(compared)} stages: {', '.join(failed)}{rest}"
    return bool(compared), f"OK: {len(compared)} stages within tolerance{rest}"


def _tolerances(generated: Mapping[str, Tensor], atol: Mapping[str, float]) -> dict[str, float]:
    names = [*STAGES, *(f"generate.{name}" for name in [*GENERATED, *generated])]
    tolerances: dict[str, float] = {}
    for pattern, value in atol.items():
        matching = fnmatch.filter(names, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Stages: {', '.join(STAGES)}"
            raise ScaError(f"--atol: no stage {pattern!r}. {hint}")
        tolerances |= dict.fromkeys(matching, value)
    return tolerances


def _compare_stage(
    name: str, recorded: Tensor, ours: Mapping[str, Tensor], tolerance: float, inputs: _Inputs
) -> StageResult:
    if name == "image_embeddings" and inputs.pixels_B3SS is None:
        note = "no pixel_values: taken from the recording as the input of the other stages"
        return StageResult(name, None, tolerance, None, note)
    mine = ours.get(name)
    if mine is not None and name in ("image_positional_embeddings", "dense_prompt_embeddings"):
        # The same for every image; recordings may hold it once, or once per image.
        if len(recorded) != len(mine) and recorded.ndim == mine.ndim and len({len(recorded), len(mine)} - {1}) == 1:
            mine, recorded = torch.broadcast_tensors(mine, recorded) if recorded.shape[1:] == mine.shape[1:] else (mine, recorded)
    where = None
    if name in ("lm_logits", "lm_inputs_embeds"):
        where = ours.get("lm_attention_mask")
    return _compare(name, recorded, mine, tolerance, where=where)


def _compare(
    stage: str,
    recorded: Tensor,
    ours: Tensor | None,
    tolerance: float,
    *,
    where: Tensor | None = None,
) -> StageResult:
    if ours is None:
        note = "the recording's inputs do not allow it"
        return StageResult(stage, None, tolerance, None, note)
    if recorded.numel() != ours.numel() or (ours.ndim and recorded.shape[-1:] != ours.shape[-1:]):
        if not (ours.numel() == recorded.numel() == 1):
            note = f"shape is {tuple(recorded.shape)}, this model gives {tuple(ours.shape)}"
            return StageResult(stage, math.inf, tolerance, False, note)
    difference = (recorded.reshape(ours.shape).double() - ours.double()).abs()
    if where is not None:
        difference = difference[where.bool()]
    error = float(difference.max()) if difference.numel() else 0.0
    note = "" if math.isfinite(error) else "not finite"
    return StageResult(stage, error, tolerance, error <= tolerance, note)


def _are_ids(value: Tensor) -> bool:
    return not value.is_floating_point() and value.ndim >= 2


def _compare_ids(
    model: ScaModel,
    stage: str,
    recorded: Tensor,
    ours: Mapping[str, Tensor],
    inputs: _Inputs,
    all_settings: Mapping[str, Any],
    info: Mapping[str, Any],
) -> StageResult:
    if "query_embeddings" not in ours:
        return StageResult(stage, None, 0.0, None, "the recording's inputs do not allow it")
    name = stage.removeprefix("generate.")
    settings, problem = _generation_settings(name, all_settings.get(name))
    if settings is None:
        return StageResult(stage, None, 0.0, None, problem)
    mine = _generate(model, ours, inputs, *settings)
    rows = recorded.flatten(0, -2).tolist()
    if len(rows) != len(mine):
        note = f"{len(rows)} rows, this model gives {len(mine)} (regions x caption heads)"
        return StageResult(stage, math.inf, 0.0, False, note)
    bos, eos = _bos_token_id(model, info), model.config.eos_token_id
    if rows and all(row and row[0] == bos for row in rows):
        rows = [row[1:] for row in rows]
    rows = [_through_end(row, eos) for row in rows]
    differing = [i for i, (row, ids) in enumerate(zip(rows, mine, strict=True)) if row != list(ids)]
    note = ""
    if differing:
        first = differing[0]
        note = f"row {first}: {rows[first]}, this model gives {list(mine[first])}"
    return StageResult(stage, float(len(differing)), 0.0, not differing, note)


