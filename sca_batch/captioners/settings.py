"""Settings of captions. No model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sca_batch.errors import ScaError
from sca_batch.options import check_options, option

__all__ = ["CaptionSettings"]


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """Settings that captions depend on, with the defaults of the published evaluation.

    `max_new_tokens` 19 is the reference's `max_length` 20, which counts a token that is never
    shown to the model. `captions_per_region` best beams are kept. `prompt` is what a proposed
    region is captioned from; a given one is prompted with what was given.
    """

    task: Literal["caption", "recognition"] = option(
        "caption", "What is said of a region: a sentence, or its name.", content=True
    )
    prompt: Literal["box", "point"] = option(
        "box",
        "What a proposed region is captioned from: its box, or the grid point it was found with "
        "(as in the published demo).",
        content=True,
    )
    num_beams: int = option(
        3,
        "Beams of the search for words; 1 is greedy, faster and a little worse.",
        content=True,
        least=1,
    )
    max_new_tokens: int = option(
        19,
        "Length at which captions are cut; 19 is the published max_length 20.",
        content=True,
        least=1,
    )
    captions_per_region: int = option(1, "Keep this many of the beams.", content=True, least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.captions_per_region > self.num_beams:
            raise ScaError(
                f"--captions-per-region {self.captions_per_region} is more than the "
                f"{self.num_beams} beams; add --num-beams {self.captions_per_region}"
            )
