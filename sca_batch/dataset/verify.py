"""The check of a dataset against its run: every shard, row, mask and id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sca_batch.boxes import rle_area, rle_box_xyxy, xywh_to_xyxy
from sca_batch.dataset.schema import SCHEMA, RecordRow, RegionRow
from sca_batch.dataset.shards import (
    DamagedShardError,
    dataset_shards,
    fingerprint_digest,
    iter_file,
    open_shard,
    read_run,
    read_shard_mark,
    shard_path,
)
from sca_batch.errors import ERROR_CODES, ScaError
from sca_batch.manifests.values import parse_mask
from sca_batch.plan.run_plan import RunPlan, open_run_plan
from sca_batch.records import ImageRef
from sca_batch.storage.stores import AnyPath

__all__ = ["Finding", "verify_dataset"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: where, and what."""

    place: str
    what: str


def verify_dataset(dataset: AnyPath) -> Iterator[Finding]:
    """Everything that is wrong with the dataset; nothing when it is whole.

    Raises:
        ScaError: when the folder is not a dataset at all.
    """
    digest = fingerprint_digest(read_run(dataset)["fingerprint"])
    plan = open_run_plan(dataset)
    try:
        plan.check()
    except ScaError as error:
        yield Finding(str(plan.path), str(error))
        return
    yield from _unique_ids(plan)
    for index in range(plan.shards):
        path = shard_path(dataset, index)
        if path.exists():
            yield from _shard(path, plan, index, digest)
        else:
            yield Finding(path.name, f"missing; {plan.rows_of(index):,} images have no record")
    last = shard_path(dataset, plan.shards - 1).name
    for path in dataset_shards(dataset):
        if (len(path.name), path.name) > (len(last), last):
            yield Finding(path.name, "no shard of this run's plan")


def _unique_ids(plan: RunPlan) -> Iterator[Finding]:
    ids = np.concatenate([batch["image_id"].to_numpy() for batch in plan.batches(["image_id"])])
    ids.sort()
    if (ids[1:] == ids[:-1]).any():
        yield Finding(str(plan.path), "an image_id stands there twice")


def _shard(path: AnyPath, plan: RunPlan, index: int, digest: str) -> Iterator[Finding]:
    try:
        mark = read_shard_mark(path)
        with open_shard(path, whole=False) as file:
            schema = file.schema_arrow
    except DamagedShardError as error:
        yield Finding(path.name, str(error).removeprefix(f"{path}: "))
        return
    if not schema.equals(SCHEMA, check_metadata=False):
        yield Finding(path.name, "its columns are not those of this version")
        return
    first, rows = plan.first_row(index), plan.rows_of(index)
    if mark.fingerprint != digest:
        yield Finding(path.name, "made by a run with other settings")
    elif (mark.index, mark.first_row, mark.last_row) != (index, first, first + rows - 1):
        yield Finding(
            path.name,
            f"holds rows {mark.first_row:,} to {mark.last_row:,} of shard {mark.index}; expected "
            f"rows {first:,} to {first + rows - 1:,} of shard {index}",
        )
    elif mark.versions != plan.versions(index):
        yield Finding(path.name, "some of its images have changed or are to be tried again")
    else:
        for ref, row in zip(plan.refs(index), iter_file(path), strict=True):
            for what in _row(ref, row):
                yield Finding(path.name, f"{row['key']}: {what}")


def _row(ref: ImageRef, row: RecordRow) -> Iterator[str]:
    if (row["image_id"], row["key"]) != (ref.image_id, ref.key):
        yield f"stands where the plan has {ref.key}, image_id {ref.image_id}"
    regions, status = row["regions"], row["status"]
    if status not in ("ok", "empty", "failed") or bool(regions) != (status == "ok"):
        yield f"status {status!r} with {len(regions)} regions"
    if (row["error_code"] is not None) != (status == "failed"):
        yield f"status {status!r} with error_code {row['error_code']!r}"
    elif status == "failed" and row["error_code"] not in ERROR_CODES:
        yield f"error_code {row['error_code']!r} is none of those there are"
    if status != "failed" and not (row["sha256"] and row["width"] and row["height"]):
        yield "no digest or no size, though it did not fail"
    for i, region in enumerate(regions):
        for what in _region(row, region, i):
            yield f"regions[{i}]: {what}"


def _region(row: RecordRow, region: RegionRow, expected_id: int) -> Iterator[str]:
    if region["region_id"] != expected_id:
        yield f"region_id {region['region_id']}"
    segmentation = region["segmentation"]
    if segmentation is None:
        return
    try:
        mask = parse_mask(segmentation, "segmentation")
    except ScaError as error:
        yield str(error)
        return
    if mask["size"] != [row["height"], row["width"]]:
        yield f"a mask of {mask['size']} in an image of {[row['height'], row['width']]}"
    if rle_area(mask) != region["area"]:
        yield f"area {region['area']:,}, the mask has {rle_area(mask):,} pixels"
    if tuple(xywh_to_xyxy(region["bbox"]).tolist()) != rle_box_xyxy(mask):
        yield f"bbox {region['bbox']} is not the mask's"
