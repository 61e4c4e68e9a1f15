"""Sources as a manifest: the rows of their plan, with the columns of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sca_batch.errors import ScaError
from sca_batch.manifests.listing import PromptCell
from sca_batch.manifests.request import BuildRequest
from sca_batch.manifests.values import as_written
from sca_batch.manifests.write import write_manifest
from sca_batch.plan.plan import Plan, PlanRow, plan_head
from sca_batch.plan.sources import plan_sources

__all__ = ["plan_rows", "write_sources"]


def write_sources(request: BuildRequest, target: Path | None, stdin: BinaryIO | None) -> Plan:
    """The plan of the request's sources, written to TARGET; None writes nothing.

    Raises:
        ScaError: for sources that are missing, empty or wrong, and a TARGET that is not JSON lines.
    """
    plan = plan_sources(
        request.sources,
        box_format=request.box_format,
        stdin=stdin,
    )
    if request.limit is not None:
        plan = plan_head(plan, request.limit)
    if target is not None:
        if target.suffix.lower() == ".parquet":
            raise ScaError(
                f"{target}: a manifest of folders and files is written as JSON lines: -o "
                f"{target.with_suffix('.jsonl')}"
            )
        start = target.absolute().parent if request.relative else None
        write_manifest(plan_rows(plan, start), target)
    return plan


def plan_rows(plan: Plan, start: Path | None) -> Iterator[dict[str, object]]:
    """The rows of a plan as manifest columns; paths are absolute, or relative to `start`."""
    for batch in plan.batches():
        for row in cast(Iterator[PlanRow], batch.iter_rows(named=True)):
            uri = row["uri"]
            if "://" not in uri:
                uri = os.path.abspath(uri) if start is None else os.path.relpath(uri, start)
            cells: dict[str, object] = {"uri": uri}
            if row["key"] != row["file_name"]:  # the row came with an id
                number = str(row["image_id"]) == row["key"]
                cells["image_id"] = row["image_id"] if number else row["key"]
            if row["prompts"] is not None:
                cells |= _region_columns(row["prompts"])
            yield cells | json.loads(row["extra"])


def _region_columns(prompts: list[PromptCell]) -> dict[str, object]:
    columns: dict[str, list[object]] = {
        "boxes_xyxy": [as_written(region["prompt_box_xyxy"] or ()) for region in prompts],
        "points": [[as_written(xy) for xy in region["points"] or ()] for region in prompts],
        "point_labels": [list(region["labels"] or ()) for region in prompts],
        "masks_rle": [region["segmentation"] for region in prompts],
        "prompt_ids": [region["prompt_id"] for region in prompts],
    }
    filled: dict[str, object] = {
        name: [cell or None for cell in cells] for name, cells in columns.items() if any(cells)
    }
    return filled or {"boxes_xyxy": []}
