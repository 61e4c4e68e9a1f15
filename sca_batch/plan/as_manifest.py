"""The rows of a plan as rows of a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sca_batch.plan.plan import Plan

__all__ = ["plan_rows"]


def plan_rows(plan: Plan, start: Path | None) -> Iterator[dict[str, Any]]:
    """The rows of a plan as manifest columns; paths are absolute, or relative to `start`."""
    for row in (row for batch in plan.batches() for row in batch.iter_rows(named=True)):
        uri = row["uri"]
        if "://" not in uri:
            uri = os.path.abspath(uri) if start is None else os.path.relpath(uri, start)
        cells: dict[str, Any] = {"uri": uri}
        if row["key"] != row["file_name"]:  # the row came with an id
            number = str(row["image_id"]) == row["key"]
            cells["image_id"] = row["image_id"] if number else row["key"]
        if row["prompts"] is not None:
            cells |= _region_columns(json.loads(row["prompts"]))
        yield cells | json.loads(row["extra"])


def _region_columns(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    names = {
        "box": "boxes_xyxy",
        "points": "points",
        "labels": "point_labels",
        "mask": "masks_rle",
        "id": "prompt_ids",
    }
    columns: dict[str, Any] = {
        column: [prompt.get(name) for prompt in prompts]
        for name, column in names.items()
        if any(name in prompt for prompt in prompts)
    }
    return columns or {"boxes_xyxy": []}
