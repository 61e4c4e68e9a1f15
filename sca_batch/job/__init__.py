"""One captioning job: plan, skip what is done, caption the rest.

The plan is made once. A shard file under its final name is complete; the rows of a shard that was
interrupted stand in a hidden file beside it and are taken up again. There is no other memory.
"""

from __future__ import annotations

from sca_batch.job.drive import Outcome, run_job
from sca_batch.job.run import (
    COCO_FILE,
    Run,
    open_run,
    refuse_foreign_folder,
    remove_run,
    reopened,
)
from sca_batch.job.summary import StageTimes, summarize, write_summary
from sca_batch.job.worker import ImageDone, ShardWorker, image_done
from sca_batch.storage.lock import locked

__all__ = [
    "COCO_FILE",
    "ImageDone",
    "Outcome",
    "Run",
    "ShardWorker",
    "StageTimes",
    "image_done",
    "locked",
    "open_run",
    "refuse_foreign_folder",
    "remove_run",
    "reopened",
    "run_job",
    "summarize",
    "write_summary",
]
