"""Segment and Caption Anything over image corpora.

`load_model` gives the network, `caption` captions one image for a notebook; jobs over many images
are the command line's: `sca caption --help`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sca_batch.api import caption as caption
    from sca_batch.model.zoo import load_model as load_model

__version__ = "0.1.0"

__all__ = ["__version__", "caption", "load_model"]

_HOMES = {"caption": "sca_batch.api", "load_model": "sca_batch.model.zoo"}


def __getattr__(name: str) -> Any:
    # On first use, so that `sca --help` and readers of datasets do not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
