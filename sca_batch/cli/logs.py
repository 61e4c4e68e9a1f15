"""Log lines: for people, or one JSON object per line for machines."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

import click

__all__ = ["printable", "set_up_logging", "tell"]

# File names are other people's text: a line end or an escape sequence in one must not become a
# log line of its own or reach a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
QUIET = (
    "PIL", "urllib3", "httpx", "httpcore", "filelock", "fsspec", "matplotlib", "botocore", "s3fs",
    "torch",
)  # fmt: skip


def tell(text: str, level: int = logging.WARNING) -> None:
    """Tells a person something on standard error, in the log where that is for machines.

    What is below the level that is asked for is left out. Who reads may have left: that ends no
    run.
    """
    root = logging.getLogger()
    if any(isinstance(handler.formatter, _Json) for handler in root.handlers):
        for line in text.strip().splitlines():
            logging.getLogger(__name__).log(level, "%s", line.strip())
    elif root.isEnabledFor(level):
        with contextlib.suppress(OSError, ValueError):
            click.echo(text, err=True)


def printable(text: str) -> str:
    """The text with control characters as their escapes."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A traceback keeps its lines; a message is one.
        trace = _trace(self, record)
        return f"{record.levelname} {_safe(record.getMessage())}" + (f"\n{trace}" if trace else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _safe(record.getMessage()),
        }
        if trace := _trace(self, record):
            line["traceback"] = trace
        return json.dumps(line, ensure_ascii=False)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback of this process, or the one that a worker has sent."""
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    return str(getattr(record, "trace", ""))


def _safe(message: str) -> str:
    from sca_batch.records import redacted

    return printable(redacted(message))


class _ToStandardError(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line above the progress bar, where there is one."""
        shown = sys.modules.get("tqdm")
        bars = contextlib.nullcontext() if shown is None else shown.tqdm.external_write_mode()
        with bars:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing: who reads standard error may have left, and that ends no run."""


def set_up_logging(level: int, form: str) -> None:
    """Log lines go to standard error, from this level on."""
    handler = _ToStandardError(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Lines())
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
