"""Counts of a run as a Prometheus text file, for a node exporter to collect."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.job.events import Event, Finished, ImageDone, Planned, Resumed

__all__ = ["Metrics"]

EVERY_S = 15.0

log = logging.getLogger(__name__)


class Metrics:
    """A listener that writes its counts now and then and at the end.

    Raises:
        MissingPackageError: when prometheus_client is not installed.
        ScaError: when there is no folder for the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge
        except ImportError:
            raise MissingPackageError("prometheus_client", "--metrics-file", "metrics") from None
        if path.is_dir() or not path.parent.is_dir():
            raise ScaError(f"--metrics-file {path}: expected a file in a folder that is there")
        self._path = path
        self._registry = registry = CollectorRegistry()
        self._images = Counter("sca_images", "Images with a record", ["status"], registry=registry)
        self._failed = Counter("sca_failures", "Failed images", ["code"], registry=registry)
        self._regions = Counter("sca_regions", "Captioned regions", registry=registry)
        self._resumed = Gauge(
            "sca_images_done_before", "Images done in earlier runs", registry=registry
        )
        self._last = Gauge(
            "sca_last_image_timestamp_seconds", "Last finished image", registry=registry
        )
        self._complete = Gauge("sca_complete", "1 when every image has a record", registry=registry)
        self._begun = Gauge(
            "sca_session_start_timestamp_seconds", "Start of this session", registry=registry
        )
        self._begun.set_to_current_time()
        self._planned = Gauge("sca_images_planned", "Images of the run", registry=registry)
        self._written_at = 0.0
        self._warned = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._planned.set(event.images)
        elif isinstance(event, Resumed):
            self._resumed.inc(event.images)
        elif isinstance(event, ImageDone):
            self._images.labels(event.status).inc()
            self._regions.inc(event.regions)
            self._last.set_to_current_time()
            if event.error_code:
                self._failed.labels(event.error_code).inc()
        elif isinstance(event, Finished):
            self._complete.set(event.complete)
        else:
            return
        now = time.monotonic()
        if isinstance(event, Planned | Finished) or now - self._written_at > EVERY_S:
            self._write()
            self._written_at = now

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        # Under another name first, then renamed: a scraper never sees half of it.
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:  # counts are no reason to end a run
            if not self._warned:
                log.warning(
                    "--metrics-file %s: not written (%s); the run goes on.", self._path, error
                )
            self._warned = True
