"""Errors that a user can meet, each with the exit code that a script sees.

ScaError                        2  a request that cannot be met
  . MissingPackageError         2  an optional package is not installed
  . OutputError                75  results cannot be written now
    . NoRoomError              75  a disk is full
    . StoreError               75  a store does not answer (sca_batch.storage.stores)
  . TrainingError               1  a training run cannot go on as it is
  . ImageError                     an image cannot be used: a record has its code, the run goes on
  . CorruptAnnotationError      2  an annotation file is cut off or damaged (sca_batch.manifests)
  . DamagedShardError              a shard is not what was written (sca_batch.dataset.shards)
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "ERROR_CODES", "EXIT_BUG", "EXIT_INTERRUPTED", "EXIT_LEFTOVERS", "EXIT_STOPPED", "EXIT_USAGE",
    "ImageError", "MissingPackageError", "NoRoomError", "OutputError", "ScaError", "TrainingError",
    "install_hint", "optional_package",
]  # fmt: skip

# Why an image can fail; docs/FORMAT.md says what each means.
ERROR_CODES = (
    "missing", "unreadable", "empty_file", "not_an_image", "truncated", "too_large", "decode",
    "checksum", "mask_size", "not_finite", "outside_root",
    "forbidden_url", "timeout", "oom", "killed_worker",
)  # fmt: skip

EXIT_LEFTOVERS = 1  # finished, but with more failures than allowed
EXIT_USAGE = 2  # a request that cannot be met; nothing was started
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_STOPPED = 75  # EX_TEMPFAIL: told to stop; the same command goes on
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class ScaError(Exception):
    """A request that cannot be met. The message says what, where, and what to type next."""

    exit_code = EXIT_USAGE


class MissingPackageError(ScaError):
    """An optional package that the chosen option needs is not installed.

    `extra` is the one of this package's extras that brings it, where one does.
    """

    def __init__(self, package: str, needed_for: str, extra: str | None = None) -> None:
        install = f"pip install {package}" if extra is None else install_hint(extra)
        super().__init__(f"{needed_for} needs the package {package}. Install it: {install}")


def install_hint(extra: str) -> str:
    """The command that installs an extra. It is for a clone: no package index has a release."""
    return f"pip install '.[{extra}]' (in a clone of sca)"


def optional_package(module: str, needed_for: str, extra: str) -> ModuleType:
    """A module of an optional package.

    Raises:
        MissingPackageError: it is not here, or its own libraries are not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError):
        raise MissingPackageError(module, needed_for, extra) from None


class OutputError(ScaError):
    """Results cannot be written now. What was committed is kept; the same command goes on."""

    exit_code = EXIT_STOPPED


class NoRoomError(OutputError):
    """A disk is full; `what` says which one, and what did not fit."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Free some more; what was committed is kept, and the same command goes on"
        )
        self.what = what


class TrainingError(ScaError):
    """A training run that cannot go on as it is. Its last checkpoint is kept."""

    exit_code = EXIT_LEFTOVERS


class ImageError(ScaError):
    """An image that cannot be used. `code` is one of the closed set that records carry."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        assert code in ERROR_CODES, code
        self.code = code
