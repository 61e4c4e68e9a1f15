"""How the ids in a recording were generated, and where in their rows the captions are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sca_batch.model.sca import ScaModel

# Written by `record`, under the names that recordings of the published implementation use.
GENERATE_SETTINGS: dict[str, dict[str, int]] = {
    "greedy": {"num_beams": 1, "max_length": 20},
    "beam3": {"num_beams": 3, "max_length": 20},
    "beam3_new10": {"num_beams": 3, "max_new_tokens": 10},
}
DEFAULT_MAX_LENGTH = 20  # the reference's, a BOS included

# Arguments of `generate` that change nothing at these values, or never do here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "early_stopping": (False, None),
    "length_penalty": (1, None),
    "repetition_penalty": (1, None),
    "diversity_penalty": (0, None),
    "min_length": (0, None),
    "min_new_tokens": (0, None),
    "no_repeat_ngram_size": (0, None),
    "num_beam_groups": (1, None),
    "num_return_sequences": (1, None),
}
_INFORMATIVE = frozenset(
    ["outer", "generate_chunk_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"]
    + ["temperature", "top_k", "top_p", "return_dict_in_generate", "output_scores"]
)


def _generation_settings(name: str, given: Any) -> tuple[tuple[int, int] | None, str]:
    """Beams and new tokens of an id set, or why they cannot be known."""
    if given is None:
        match = re.fullmatch(r"(?:greedy|beam(\d+))(?:_new(\d+))?(?:_chunk\d+)?", name)
        if match is None:
            return None, "info.json does not say how these ids were generated"
        beams = int(match[1] or 1)
        return (beams, int(match[2]) if match[2] else DEFAULT_MAX_LENGTH - 1), ""
    if not isinstance(given, dict):
        return None, f"info.json: generate.{name} is not an object"
    known = {"num_beams", "max_length", "max_new_tokens"}
    odd = {
        key: value
        for key, value in given.items()
        if key not in known | _INFORMATIVE and value not in _NEUTRAL.get(key, ())
    }
    if odd:
        return None, f"generated with {odd}, which is not supported here"
    beams = given.get("num_beams") or 1
    new_tokens = given.get("max_new_tokens")
    if new_tokens is None:
        new_tokens = (given.get("max_length") or DEFAULT_MAX_LENGTH) - 1
    if not (isinstance(beams, int) and isinstance(new_tokens, int) and beams > 0 < new_tokens):
        return None, f"info.json: generate.{name} is {given}; expected positive whole numbers"
    return (beams, new_tokens), ""


def _through_end(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


def _bos_token_id(model: ScaModel, info: Mapping[str, Any]) -> int:
    for value in (info.get("bos_token_id"), model.config.text.bos_token_id):
        if isinstance(value, int):
            return value
    return model.config.eos_token_id


