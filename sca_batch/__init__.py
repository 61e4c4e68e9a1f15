"""Segment and Caption Anything over image corpora.

`caption_corpus` does what `sca caption` does, for a `CaptionRequest`; `caption` captions one image,
for notebooks; `load_model` gives the network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sca_batch.api import caption as caption
    from sca_batch.job import events as events
    from sca_batch.job.caption import Outcome as Outcome
    from sca_batch.job.caption import caption_corpus as caption_corpus
    from sca_batch.job.caption import caption_images as caption_images
    from sca_batch.job.request import CaptionRequest as CaptionRequest
    from sca_batch.model.load import load_model as load_model

__version__ = "0.1.0"

_HOMES = {
    "CaptionRequest": "sca_batch.job.request",
    "Outcome": "sca_batch.job.caption",
    "caption": "sca_batch.api",
    "caption_corpus": "sca_batch.job.caption",
    "caption_images": "sca_batch.job.caption",
    "events": "sca_batch.job",
    "load_model": "sca_batch.model.load",
}
__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    # On first use, so that `sca --help` and readers of datasets do not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "events":
        return importlib.import_module("sca_batch.job.events")
    return getattr(importlib.import_module(_HOMES[name]), name)
