"""The plan: every image of a run, numbered, in the order in which shards cut it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from sca_batch.data.atomic import writing
from sca_batch.data.columns import prompts_from_json
from sca_batch.data.digests import digest_rows
from sca_batch.errors import ScaError
from sca_batch.records import ImageRef

__all__ = [
    "LISTING_SCHEMA",
    "PLAN_FILE",
    "Listing",
    "Plan",
    "make_plan",
    "plan_head",
    "read_plan",
    "shard_count",
    "shard_refs",
    "write_plan",
]

PLAN_FILE = Path("plan") / "manifest.parquet"

PLAN_SCHEMA = {
    "image_id": pl.Int64(),
    "key": pl.String(),
    "uri": pl.String(),
    "file_name": pl.String(),
    "prompts": pl.String(),
    "extra": pl.String(),
}
LISTING_SCHEMA = {
    "position": pl.Int64(),  # line, row or index in the source, for messages
    "given_number": pl.Int64(),
    "given_id": pl.String(),
    "uri": pl.String(),
    "file_name": pl.String(),
    "prompts": pl.String(),
    "extra": pl.String(),
}


@dataclass(frozen=True)
class Plan:
    """One row per image, with `PLAN_SCHEMA`'s columns, and the digest of those rows.

    `prompts` is JSON, or null where regions are to be proposed; `extra` is a JSON object.
    `skipped_files` counts what folders held beside images.
    """

    frame: pl.DataFrame
    digest: str
    skipped_files: int = 0

    def __len__(self) -> int:
        return self.frame.height


@dataclass(frozen=True)
class Listing:
    """What one source lists: a frame with `LISTING_SCHEMA`'s columns, and how to point into it."""

    name: str
    frame: pl.DataFrame = field(repr=False)
    unit: Literal["line", "row", "index", "file"] = "file"
    skipped_files: int = 0

    def place(self, position: int, uri: str) -> str:
        """Where a row stands, as messages say it."""
        if self.unit == "file":
            return f"{uri} (listed by {self.name})"
        if self.unit == "index":
            return f"{self.name}, images[{position}]"
        return f"{self.name}, {self.unit} {position}"


def make_plan(listings: Sequence[Listing]) -> Plan:
    """Numbers the rows of all listings, in their order.

    The given ids are kept when every row has one and all are integers; else rows count from 1.
    A row's key is its given id, or without one its file name.

    Raises:
        ScaError: naming both places, when two rows have one key.
    """
    rows = pl.concat(
        [
            listing.frame.select(pl.lit(i, pl.Int32).alias("listing"), pl.all())
            for i, listing in enumerate(listings)
        ]
    )
    key = pl.coalesce("given_id", "file_name")
    rows = rows.with_columns(key.alias("key"))
    _refuse_duplicates(rows, listings)
    if rows["given_number"].null_count():
        image_id = pl.int_range(1, rows.height + 1, dtype=pl.Int64)
    else:
        image_id = pl.col("given_number")
    frame = rows.with_columns(image_id.alias("image_id")).select(list(PLAN_SCHEMA))
    return Plan(frame, _digest(frame), sum(listing.skipped_files for listing in listings))


def _refuse_duplicates(rows: pl.DataFrame, listings: Sequence[Listing]) -> None:
    if rows["key"].n_unique() == rows.height:
        return
    again = rows.filter(~pl.col("key").is_first_distinct()).row(0, named=True)
    first = rows.filter(pl.col("key") == again["key"]).row(0, named=True)
    places = [listings[row["listing"]].place(row["position"], row["uri"]) for row in (again, first)]
    if again["given_id"] is not None:
        what = f"image_id {json.dumps(again['key'])}"
        fix = "give every row an id of its own"
    else:
        what = again["key"]
        fix = "list each image once, or give every row an image_id"
    raise ScaError(f"{places[0]}: {what} stands already in {places[1]}; {fix}")


def plan_head(plan: Plan, limit: int) -> Plan:
    """The plan of the first `limit` rows."""
    if limit >= len(plan):
        return plan
    frame = plan.frame.head(limit)
    return Plan(frame, _digest(frame), plan.skipped_files)


def shard_count(plan: Plan, shard_size: int) -> int:
    """How many shards of `shard_size` rows the plan makes; the last may be shorter."""
    return -(-len(plan) // shard_size)


def shard_refs(plan: Plan, index: int, shard_size: int) -> Iterator[ImageRef]:
    """The images of one shard."""
    rows = plan.frame.slice(index * shard_size, shard_size)
    for row in rows.iter_rows(named=True):
        yield ImageRef(
            image_id=row["image_id"],
            key=row["key"],
            uri=row["uri"],
            file_name=row["file_name"],
            prompts=prompts_from_json(row["prompts"]),
            extra=json.loads(row["extra"]),
        )


def write_plan(plan: Plan, out: Path) -> Path:
    """Writes OUT/plan/manifest.parquet and returns its path."""
    path = out / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        plan.frame.write_parquet(file, metadata={"sca.plan_digest": plan.digest})
    return path


def read_plan(out: Path) -> Plan:
    """The plan of a run that was started before.

    Raises:
        ScaError: when there is none, or when its rows are not those that were written.
    """
    path = out / PLAN_FILE
    if not path.exists():
        raise ScaError(f"{path}: no plan; this folder holds no run that could go on")
    try:
        frame = pl.read_parquet(path)
        noted = pl.read_parquet_metadata(path).get("sca.plan_digest")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ScaError(
            f"{path}: not a readable plan ({error}); start again with --overwrite"
        ) from None
    if frame.schema != pl.Schema(PLAN_SCHEMA) or _digest(frame) != noted:
        raise ScaError(
            f"{path}: its rows are not those that were planned; start again with --overwrite"
        )
    return Plan(frame, _digest(frame))


def _digest(frame: pl.DataFrame) -> str:
    return digest_rows(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
