"""The images of a run that lie outside of what a narrow model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sca_batch.job.events import ImageDone, OutsideDomain

if TYPE_CHECKING:
    from sca_batch.model.config import Domain

__all__ = ["DomainWatch"]


class DomainWatch:
    """Compares each image's captions with those of a model's own domain; None: it has none."""

    def __init__(self, model: str, domain: Domain | None) -> None:
        self.model, self.domain = model, domain
        self.outside = 0

    def look(self, image: ImageDone) -> OutsideDomain | None:
        """Counts an image that lies outside; what is to be said of the first."""
        domain = self.domain
        if domain is None or image.logprob is None or image.logprob >= domain.least_logprob:
            return None
        self.outside += 1
        if self.outside > 1:
            return None
        return OutsideDomain(
            key=image.key,
            model=self.model,
            domain=domain.name,
            logprob=image.logprob,
            least_logprob=domain.least_logprob,
            share_above=1 - domain.share_below,
            elsewhere=domain.elsewhere,
        )
