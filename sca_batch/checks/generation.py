"""Arguments that a recording's ids were generated with, and the captions in their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sca_batch.model.sca import ScaModel

__all__ = ["GENERATE_SETTINGS", "GenerateSettings", "bos_token_id", "captions_in", "settings_of"]

# What `record` generates, under the names that recordings of the published implementation use.
GENERATE_SETTINGS: dict[str, dict[str, int]] = {
    "greedy": {"num_beams": 1, "max_length": 20},
    "beam3": {"num_beams": 3, "max_length": 20},
    "beam3_new10": {"num_beams": 3, "max_new_tokens": 10},
}
DEFAULT_MAX_LENGTH = 20  # the reference's; the BOS that it puts in front counts

_KNOWN = {"num_beams", "max_length", "max_new_tokens"}
# Arguments of `generate` that change nothing at these values.
_NEUTRAL = {
    "do_sample": False, "early_stopping": False, "length_penalty": 1, "repetition_penalty": 1,
    "diversity_penalty": 0, "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_return_sequences": 1,
}  # fmt: skip
# Arguments that never change the ids of a deterministic search; `outer` are the captioner's own.
_INFORMATIVE = {
    "outer", "generate_chunk_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
    "temperature", "top_k", "top_p", "return_dict_in_generate", "output_scores",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    num_beams: int
    max_new_tokens: int


def settings_of(name: str, info: Mapping[str, object]) -> GenerateSettings | str:
    """Arguments of one id set as info.json has them, or why they cannot be followed.

    Without an entry, a name such as `beam3_new10` says it.
    """
    all_given = info.get("generate")
    given = all_given.get(name) if isinstance(all_given, dict) else None
    if given is None:
        match = re.fullmatch(r"(?:greedy|beam(\d+))(?:_new(\d+))?(?:_chunk\d+)?", name)
        if match is None:
            return "info.json does not say how these ids were generated"
        given = {"num_beams": int(match[1] or 1)}
        given |= {"max_new_tokens": int(match[2])} if match[2] else {}
    if not isinstance(given, dict):
        return f"generate.{name} in info.json is {given!r}, expected an object"
    unsupported = {
        key: value
        for key, value in given.items()
        if key not in _KNOWN | _INFORMATIVE
        and not (key in _NEUTRAL and value in (None, _NEUTRAL[key]))
    }
    if unsupported:
        return f"generated with {unsupported}, which is not supported"
    beams, new_tokens = given.get("num_beams") or 1, given.get("max_new_tokens")
    if new_tokens is None:
        max_length = given.get("max_length") or DEFAULT_MAX_LENGTH
        new_tokens = max_length - 1 if isinstance(max_length, int) else max_length
    if not (isinstance(beams, int) and isinstance(new_tokens, int) and beams > 0 < new_tokens):
        return f"generate.{name} in info.json is {given}, expected positive whole numbers"
    return GenerateSettings(num_beams=beams, max_new_tokens=new_tokens)


def captions_in(rows: Sequence[Sequence[int]], bos: int, eos: int) -> list[list[int]]:
    """The generated part of recorded rows: after the BOS in front, through the first end id."""
    # Index 0 is a BOS that the language model neither saw nor produced. Releases that leave it
    # out are told by the rows: not all of them start with it.
    start = 1 if all(row and row[0] == bos for row in rows) else 0
    captions = [list(row[start:]) for row in rows]
    return [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in captions]


def bos_token_id(model: ScaModel, info: Mapping[str, object]) -> int:
    """The id that recorded rows start with: the recording's own word for it, else the model's."""
    for value in (info.get("bos_token_id"), model.config.text.bos_token_id):
        if isinstance(value, int):
            return value
    return model.config.eos_token_id
