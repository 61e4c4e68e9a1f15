"""How far a run is: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sca_batch.job import ImageDone

__all__ = ["Progress", "duration", "show_progress"]

log = logging.getLogger(__name__)


class Progress:
    """A bar on a terminal, a log line now and then elsewhere; only standard error is written."""

    LOG_EVERY_S = 15.0

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.total, self.done, self.fresh, self.regions, self.failed = total, 0, 0, 0, 0
        quiet = not log.isEnabledFor(logging.INFO)
        self.bar = tqdm(
            total=total,
            unit="image",
            disable=quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._logs = not quiet and self.bar.disable
        self._began = self._logged = _now()

    def resumed(self, images: int) -> None:
        if images:
            self.done += images
            if not self.bar.disable:
                # Counted, but not as this session's speed.
                self.bar.initial += images
                self.bar.update(images)
            log.info("%s of %s images are done already.", f"{self.done:,}", f"{self.total:,}")

    def record(self, image: ImageDone) -> None:
        self.done += 1
        self.fresh += 1
        self.regions += image.regions
        self.failed += image.status == "failed"
        if image.status == "failed":
            self.bar.clear()
            log.warning("%s: %s (%s)", image.key, image.error, image.error_code)
        self.bar.set_postfix_str(f"{self.regions:,} regions", refresh=False)
        self.bar.update(1)
        if self._logs and _now() - self._logged > self.LOG_EVERY_S:
            self._logged = _now()
            rate = self.fresh / (self._logged - self._began)
            log.info(
                "%s of %s images, %.2f images/s, %s regions, about %s left",
                f"{self.done:,}", f"{self.total:,}", rate, f"{self.regions:,}",
                duration((self.total - self.done) / rate),
            )  # fmt: skip


@contextmanager
def show_progress(total: int) -> Iterator[Progress]:
    progress = Progress(total)
    try:
        yield progress
    finally:
        progress.bar.close()


def _now() -> float:
    import time

    return time.monotonic()


def duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s"
