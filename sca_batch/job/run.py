"""A run in a folder: started or resumed, removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sca_batch.dataset.shards import (
    CONTENT_VERSION,
    RUN_FILE,
    dataset_shards,
    differing_keys,
    fingerprint_digest,
    read_run,
    write_run,
)
from sca_batch.errors import ScaError
from sca_batch.faults import fault
from sca_batch.plan.plan import PLAN_FILE, Plan
from sca_batch.plan.run_plan import RunPlan, open_run_plan, run_plan_frames, write_run_plan
from sca_batch.records import Json
from sca_batch.storage.atomic import remove_unfinished
from sca_batch.storage.lock import LOCK_FILE
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = [
    "COCO_FILE",
    "PARTIAL_NAME",
    "SUMMARY_FILE",
    "Run",
    "open_run",
    "refuse_foreign_folder",
    "remove_run",
    "reopened",
]

COCO_FILE = "captions.json"
SUMMARY_FILE = "summary.json"
PARTIAL_NAME = re.compile(r"\.shard-(\d{6,})\.partial-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class Run:
    """A run that exists on disk: its folder, its plan and what its records depend on."""

    out: AnyPath
    plan: RunPlan
    fingerprint: Mapping[str, Json]

    @property
    def digest(self) -> str:
        return fingerprint_digest(self.fingerprint)


def open_run(
    out: AnyPath,
    *,
    make_plan: Callable[[], Plan],
    content: Mapping[str, Json],
    settings: Mapping[str, Json],
    shard_size: int,
) -> Run:
    """Starts a run in `out`, or resumes the one that is there.

    `content` holds every setting that records depend on; `settings` is informative. A run that
    is there keeps its plan: its source is not listed again.

    Raises:
        ScaError: when the run there was made with other settings, naming those that differ.
    """
    exists = (out / RUN_FILE).is_file()
    remove_unfinished(out)
    remove_unfinished(out / PLAN_FILE.parent)
    if exists:
        plan = open_run_plan(out)
        plan.check()
    else:
        fresh = make_plan()
        fault("job.planned")
        plan = write_run_plan(run_plan_frames(fresh, shard_size), out)
    fingerprint = {
        "content_version": CONTENT_VERSION,
        "plan": plan.digest,
        "shard_size": shard_size,
        **content,
    }
    if exists:
        differing = differing_keys(read_run(out)["fingerprint"], fingerprint)
        if differing:
            details = "; ".join(
                f"{key} was {before!r}, is now {after!r}"
                for key, (before, after) in differing.items()
            )
            raise ScaError(
                f"{out}: this run was started with other settings: {details}. Repeat it as it was "
                "started, choose another -o, or start over with --overwrite"
            )
    else:
        # Last, so that a folder with run.json always has its plan.
        write_run(out, {"fingerprint": fingerprint, "settings": dict(settings)})
    return Run(out, plan, fingerprint)


def reopened(run: Run) -> Run:
    """The run after its plan was rewritten."""
    return Run(run.out, open_run_plan(run.out), run.fingerprint)


def remove_run(out: AnyPath) -> None:
    """Removes a run's own files from `out`, and nothing else."""
    for path in [*dataset_shards(out), out / COCO_FILE, out / SUMMARY_FILE, out / RUN_FILE]:
        path.unlink(missing_ok=True)
    for path in out.glob(".shard-*.parquet"):
        if PARTIAL_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    if isinstance(out, StorePath):
        (out / PLAN_FILE).unlink(missing_ok=True)
    else:
        shutil.rmtree(out / PLAN_FILE.parent, ignore_errors=True)


def refuse_foreign_folder(out: AnyPath) -> None:
    """Keeps a new run out of a folder that holds something else.

    Raises:
        ScaError: for a folder with files but without run.json.
    """
    if not isinstance(out, StorePath) and out.exists() and not out.is_dir():
        raise ScaError(f"{out} is a file; name a folder with -o")
    names = [path.name for path in out.iterdir() if path.name != LOCK_FILE] if out.is_dir() else []
    ours = {RUN_FILE, str(PLAN_FILE.parent)}
    if names and not ours & set(names):
        raise ScaError(
            f"{out} holds other files ({sorted(names)[0]}, ...) and no run; name a new folder "
            "with -o"
        )
