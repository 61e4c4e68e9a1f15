"""Says once per run that images lie outside what a narrow model knows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sca_batch.job import ImageDone

__all__ = ["DomainWatch"]

log = logging.getLogger(__name__)


class DomainWatch:
    """Compares each image's captions with those of a model's own domain.

    `domain` is `model.config.Domain` as a dict, None for a model that has none: nothing is said.
    """

    def __init__(self, model: str, domain: dict[str, Any] | None) -> None:
        self.model, self.domain = model, domain
        self.outside = 0

    def record(self, image: ImageDone) -> None:
        domain = self.domain
        if domain is None or image.logprob is None or image.logprob >= domain["least_logprob"]:
            return
        self.outside += 1
        if self.outside == 1:
            log.warning(
                "%s is outside of what %s knows, %s: its captions have a mean log-probability of "
                "%.2f, and %.0f %% of the images that it was made for are above %.2f. For others: "
                "--model %s",
                image.key,
                self.model,
                domain["name"],
                image.logprob,
                100 * (1 - domain["share_below"]),
                domain["least_logprob"],
                domain["elsewhere"],
            )
