"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

__all__ = ["fsync_folder", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets the name `path` when the block ends without an error."""
    # A name of its own: two workers that race on a shard must not share a file.
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with hidden.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename is atomic, but must not outlive the bytes it names
        hidden.replace(path)
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
