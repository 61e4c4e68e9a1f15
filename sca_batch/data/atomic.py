"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from sca_batch.faults import fault

__all__ = ["fsync_folder", "remove_unfinished", "writing"]

UNFINISHED = re.compile(r"\..+\.\d+-[0-9a-f]{8}")
# What the places in `faults` call a file, by the first part of its name.
KINDS = {"manifest": "plan", "run": "run", "captions": "export", "summary": "summary"}


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets the name `path` when the block ends without an error."""
    kind = _kind(path.name)
    # A name of its own: two workers that race on a shard must not share a file.
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with hidden.open("xb") as file:
            fault(f"{kind}.opened")
            yield file
            file.flush()
            fault(f"{kind}.written")
            os.fsync(file.fileno())  # a rename is atomic, but must not outlive the bytes it names
            fault(f"{kind}.flushed")
        hidden.replace(path)
        fault(f"{kind}.named")
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was writing. Only the holder of the run's lock may do so."""
    if folder.is_dir():
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _kind(name: str) -> str:
    if name.startswith(".shard-"):
        return "partial"
    if name.startswith("shard-"):
        return "shard"
    return KINDS.get(name.split(".")[0], "file")
