"""`--metrics-file`: counts as a Prometheus text file, for a node exporter to collect."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_batch.errors import MissingPackageError

if TYPE_CHECKING:
    from sca_batch.job import ImageDone

__all__ = ["Metrics"]

EVERY_S = 15.0


class Metrics:
    """Counts of this session, written now and then and at the end; with no path, nowhere.

    Raises:
        MissingPackageError: when prometheus_client is not installed.
    """

    def __init__(self, path: Path | None, planned: int) -> None:
        self._path = path
        if path is None:
            return
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge
        except ImportError:
            raise MissingPackageError(
                "prometheus_client", "--metrics-file", "pip install 'sca[metrics]'"
            ) from None
        self._registry: Any = CollectorRegistry()
        common: Any = {"registry": self._registry}
        self._images = Counter("sca_images", "Images with a record", ["status"], **common)
        self._failed = Counter("sca_failures", "Failed images", ["code"], **common)
        self._regions = Counter("sca_regions", "Captioned regions", **common)
        self._resumed = Gauge("sca_images_done_before", "Images done in earlier runs", **common)
        self._last = Gauge("sca_last_image_timestamp_seconds", "Last finished image", **common)
        self._complete = Gauge("sca_complete", "1 when every image has a record", **common)
        Gauge("sca_images_planned", "Images of the run", **common).set(planned)
        self._written_at = time.monotonic()
        self._write()

    def resumed(self, images: int) -> None:
        if self._path is not None:
            self._resumed.inc(images)

    def record(self, image: ImageDone) -> None:
        if self._path is None:
            return
        self._images.labels(image.status).inc()
        self._regions.inc(image.regions)
        self._last.set_to_current_time()
        if image.error_code:
            self._failed.labels(image.error_code).inc()
        if time.monotonic() - self._written_at > EVERY_S:
            self._write()

    def finish(self, complete: bool) -> None:
        if self._path is not None:
            self._complete.set(complete)
            self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        # Under another name first, then renamed: a scraper never sees half of it.
        write_to_textfile(str(self._path), self._registry)
        self._written_at = time.monotonic()
