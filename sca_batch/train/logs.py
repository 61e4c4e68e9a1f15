"""A run's log: one JSON object per line, the same for a run that was stopped and went on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sca_batch.storage.atomic import writing

__all__ = ["cut_log", "listed", "row_line", "write_row"]


def cut_log(path: Path, step: int) -> None:
    """Drops the rows of steps that were done after the checkpoint and will be done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except ValueError:
            break  # the line that a kill cut short is the last
    with writing(path) as file:
        file.write("".join(kept).encode())


def write_row(log: Any, row: dict[str, Any]) -> None:
    """Appends one line of JSON, which has no number for what is not finite: null."""
    known = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    log.write(json.dumps(known) + "\n")
    log.flush()


def row_line(row: dict[str, Any]) -> str:
    """A row as people read it."""
    return f"step {row['step']}: " + listed({k: v for k, v in row.items() if k != "step"})


def listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
