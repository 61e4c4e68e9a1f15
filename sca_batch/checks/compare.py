"""A model against a recording, stage by stage."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sca_batch.checks.generation import bos_token_id, captions_in, settings_of
from sca_batch.checks.recordings import INPUTS, Recording, inputs_for, read_recording
from sca_batch.checks.stages import GENERATED, STAGES, Inputs, generate_ids, run_stages
from sca_batch.errors import ScaError
from sca_batch.model.sca import ScaModel

__all__ = ["StageResult", "check", "verdict"]

# The same for every image: a recording may hold them once, or once per image.
_SHARED = ("image_positional_embeddings", "dense_prompt_embeddings")
# Not meaningful where the caption is padded.
_MASKED = ("lm_inputs_embeds", "lm_logits")
_NO_INPUTS = "not compared: the recording lacks the inputs for it"


@dataclass(frozen=True, slots=True)
class StageResult:
    """The comparison of one stage. `ok` is None for what was not compared; `note` says why.

    `max_error` is the largest absolute difference, or for token ids the number of rows that
    differ; it is None where nothing was compared and not finite where a value was not.
    """

    stage: str
    max_error: float | None
    tolerance: float | None
    ok: bool | None
    note: str = ""


def check(
    model: ScaModel, recording: Path | Recording, *, atol: Mapping[str, float] | None = None
) -> list[StageResult]:
    """Compares a model, wherever and however it runs, with a recording, stage by stage.

    Every stage is computed from the recording's inputs through the model's own earlier stages.
    Tasks and generation arguments are the recording's. `atol` replaces tolerances by stage name
    or pattern (`lm_*`); that of a set of ids is the number of captions that may differ, 0.

    Raises:
        ScaError: where the folder is no recording or nothing in it can be compared, where an
            input does not fit the model, and where `atol` names no stage.
    """
    recorded = recording if isinstance(recording, Recording) else read_recording(recording)
    tolerances = _tolerances(recorded, atol or {})
    inputs = inputs_for(model, recorded)
    ours = run_stages(model, inputs, wanted=_wanted(recorded))

    results = [
        StageResult(f"inputs.{name}", None, None, None, "unknown tensor, not used")
        for name in sorted(recorded.inputs.keys() - set(INPUTS))
    ]
    for name in STAGES:
        if name in recorded.stages:
            value = recorded.stages[name]
            results.append(_compare_stage(name, value, ours, tolerances[name], inputs))
    for name in GENERATED:
        if name in recorded.generated:
            key = f"generate.{name}"
            value = recorded.generated[name]
            results.append(_compare(key, value, ours.get(key), tolerances[key]))
    for name in recorded.id_sets:
        allowed = tolerances[f"generate.{name}"]
        results.append(_compare_ids(model, name, recorded, ours, inputs, allowed))
    results += [
        StageResult(name, None, None, None, "unknown tensor, not compared")
        for name in recorded.unknown_tensors
    ]
    if not any(result.ok is not None for result in results):
        reasons = "; ".join(f"{result.stage} ({result.note})" for result in results[:4])
        raise ScaError(f"{recorded.folder}: nothing in this recording can be compared: {reasons}")
    return results


def verdict(results: Sequence[StageResult]) -> tuple[bool, str]:
    """True where every compared stage is within its tolerance, and one sentence that says so."""
    compared = [result for result in results if result.ok is not None]
    failed = [result.stage for result in compared if not result.ok]
    left_out = len(results) - len(compared)
    rest = f" ({left_out} not compared)" if left_out else ""
    if failed:
        return False, f"FAILED: {len(failed)} of {len(compared)} stages: {', '.join(failed)}{rest}"
    return True, f"OK: {len(compared)} stages within tolerance{rest}"


def _tolerances(recorded: Recording, atol: Mapping[str, float]) -> dict[str, float]:
    tolerances = dict(STAGES)
    tolerances |= {f"generate.{name}": value for name, value in GENERATED.items()}
    tolerances |= {f"generate.{name}": 0.0 for name in recorded.id_sets}
    for pattern, value in atol.items():
        matching = fnmatch.filter(tolerances, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, tolerances, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"one of {list(tolerances)}"
            raise ScaError(f"no stage {pattern!r}; {hint}")
        if not value >= 0:
            raise ScaError(f"tolerance {value} for {pattern}: expected a number of at least 0")
        tolerances |= dict.fromkeys(matching, value)
    return tolerances


def _wanted(recorded: Recording) -> frozenset[str]:
    behind = {"query_embeddings"} if recorded.id_sets else set()
    if recorded.generated.keys() & {"query_logits", "projected_query_logits"}:
        behind.add("query_embeddings")
    return frozenset(recorded.stages) | behind


def _compare_stage(
    name: str, recorded: Tensor, ours: Mapping[str, Tensor], tolerance: float, inputs: Inputs
) -> StageResult:
    if name == "image_embeddings" and inputs.pixels is None:
        note = "not compared: without pixel_values it is the input of the other stages"
        return StageResult(name, None, tolerance, None, note)
    mine = ours.get(name)
    if mine is not None and name in _SHARED and recorded.shape[1:] == mine.shape[1:]:
        if len(mine) == 1:
            mine = mine.expand_as(recorded)
        elif len(recorded) == 1:
            recorded = recorded.expand_as(mine)
    where = ours.get("lm_attention_mask") if name in _MASKED else None
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
        return StageResult(stage, None, tolerance, None, _NO_INPUTS)
    # Leading axes may be folded (images x regions); the last one has a meaning of its own.
    same = recorded.numel() == ours.numel()
    if not same or (ours.numel() > 1 and recorded.shape[-1:] != ours.shape[-1:]):
        note = f"shape {tuple(recorded.shape)}, but this model gives {tuple(ours.shape)}"
        return StageResult(stage, math.inf, tolerance, False, note)
    difference = (recorded.reshape(ours.shape).double() - ours.double()).abs()
    if where is not None:
        difference = difference[where.bool()]
    error = float(difference.max()) if difference.numel() else 0.0
    note = "" if math.isfinite(error) else "a value is not finite"
    return StageResult(stage, error, tolerance, error <= tolerance, note)


def _compare_ids(
    model: ScaModel,
    name: str,
    recorded: Recording,
    ours: Mapping[str, Tensor],
    inputs: Inputs,
    allowed: float,
) -> StageResult:
    stage = f"generate.{name}"
    if "query_embeddings" not in ours:
        return StageResult(stage, None, allowed, None, _NO_INPUTS)
    settings = settings_of(name, recorded.info)
    if isinstance(settings, str):
        return StageResult(stage, None, allowed, None, f"not compared: {settings}")
    mine = [list(ids) for ids in generate_ids(model, ours, inputs, settings)]
    rows = captions_in(
        recorded.id_rows(name), bos_token_id(model, recorded.info), model.config.eos_token_id
    )
    if len(rows) != len(mine):
        note = f"{len(rows)} rows, but this model gives {len(mine)}: regions x caption heads"
        return StageResult(stage, math.inf, allowed, False, note)
    differing = [i for i, (theirs, own) in enumerate(zip(rows, mine, strict=True)) if theirs != own]
    note = ""
    if differing:
        row = differing[0]
        note = f"row {row} is {rows[row]}, but this model gives {mine[row]}"
    error = float(len(differing))
    return StageResult(stage, error, allowed, error <= allowed, note)
