"""The progress of a run: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from sca_batch.cli.logs import tell
from sca_batch.job import events

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "duration"]

LOG_EVERY_S = 15.0

log = logging.getLogger(__name__)


class Progress:
    """A listener that tells a person what a run does; only standard error is written."""

    def __init__(self) -> None:
        self.total = self.done = self.fresh = self.regions = self.failed = 0
        self._quiet = not log.isEnabledFor(logging.INFO)
        self._bar: tqdm[None] | None = None
        self._began = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, event: events.Event) -> None:
        """Shows one event."""
        match event:
            case events.ImageDone():
                self._image_done(event)
            case events.Planned():
                self._planned(event.images)
            case events.Resumed(images=images) if images:
                self._resumed(images)
            case events.EngineChosen():
                log.info("Engine: %s", event.why)
            case events.OutsideDomain():
                log.warning(
                    "%s is outside of what %s knows, %s: its captions have a mean log-probability "
                    "of %.2f, and %.0f %% of the images that it was made for are above %.2f. For "
                    "others: --model %s",
                    event.key, event.model, event.domain, event.logprob, 100 * event.share_above,
                    event.least_logprob, event.elsewhere,
                )  # fmt: skip
            case events.SourcesUnlisted():
                self._say(f"The sources cannot be listed again: {event.error}")
                self._say("The run goes on with its plan.")
            case events.SourcesChanged():
                self._say(_changes(event))
            case events.RetryingFailed():
                self._say(f"{event.images:,} failed images are tried again")
            case events.StoppingSoon():
                self._say("Stopping: --time-limit is near.")

    def _planned(self, images: int) -> None:
        from tqdm import tqdm

        self.total = images
        self._bar = tqdm(
            total=images,
            unit="image",
            disable=self._quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._began = self._logged = time.monotonic()

    def _resumed(self, images: int) -> None:
        self.done += images
        if self._bar is not None and not self._bar.disable:
            # Counted, but not as this session's speed.
            self._bar.initial += images
            self._bar.update(images)
        log.info("%s of %s images are done already.", f"{self.done:,}", f"{self.total:,}")

    def _image_done(self, image: events.ImageDone) -> None:
        assert self._bar is not None, "a run is planned before an image is done"
        self.done += 1
        self.fresh += 1
        self.regions += image.regions
        if image.status == "failed":
            self.failed += 1
            self._bar.clear()
            log.warning("%s: %s (%s)", image.key, image.error, image.error_code)
        self._bar.set_postfix_str(f"{self.regions:,} regions", refresh=False)
        self._bar.update(1)
        now = time.monotonic()
        if self._bar.disable and not self._quiet and now - self._logged > LOG_EVERY_S:
            self._logged = now
            rate = self.fresh / (now - self._began)
            log.info(
                "%s of %s images, %.2f images/s, %s regions, about %s left",
                f"{self.done:,}", f"{self.total:,}", rate, f"{self.regions:,}",
                duration((self.total - self.done) / rate),
            )  # fmt: skip

    def _say(self, text: str) -> None:
        """A sentence for whoever watches; a warning where the run is not what was asked for."""
        if self._bar is not None:
            self._bar.clear()
        tell(text)


def _changes(found: events.SourcesChanged) -> str:
    counts = (
        f"{found.new:,} new, {found.changed:,} changed, {found.gone:,} vanished, "
        f"{found.back:,} back"
    )
    if found.followed:
        text = f"{counts}, {found.unchanged:,} unchanged"
        unread = f"; {found.unreadable:,} of them cannot be read now and keep their records"
        return text + unread if found.unreadable else text
    return (
        f"The sources have changed since this run was planned: {counts}. The run goes on with its "
        "plan; --update follows them."
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s"
