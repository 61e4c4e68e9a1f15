"""The plan: every image of a run, numbered, in the order in which shards cut it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.listing import (
    PROMPTS,
    STORE_SCHEMA,
    Listing,
    PromptCell,
    Survey,
    prompts_from_cell,
    row_keys,
)
from sca_batch.records import ImageRef
from sca_batch.storage.spool import Spool

__all__ = [
    "PLAN_FILE", "PLAN_SCHEMA", "Plan", "PlanRow", "make_plan", "plan_head", "plan_refs", "row_ref",
]  # fmt: skip

PLAN_FILE = Path("plan") / "manifest.parquet"

PLAN_SCHEMA: dict[str, pl.DataType] = {
    "image_id": pl.Int64(),
    "key": pl.String(),
    "uri": pl.String(),
    "file_name": pl.String(),
    "prompts": PROMPTS,
    "extra": pl.String(),
}


class PlanRow(TypedDict):
    """One row with `PLAN_SCHEMA`'s columns."""

    image_id: int
    key: str
    uri: str
    file_name: str
    prompts: list[PromptCell] | None
    extra: str


@dataclass(frozen=True, eq=False)
class Plan:
    """One row per image. The rows stand on disk; only batches of them are ever held.

    The sources' ids are the images' where all rows have one and all are integers; else rows count
    from 1. `skipped_files` counts what folders held beside images.
    """

    spools: tuple[Spool, ...]
    rows: int
    survey: Survey
    skipped_files: int

    def __len__(self) -> int:
        return self.rows

    def batches(self) -> Iterator[pl.DataFrame]:
        """The rows in order, with the columns of `PLAN_SCHEMA` and of `STORE_SCHEMA`.

        `prompts` is null where regions are to be proposed; `extra` is a JSON object.
        """
        done = 0
        for batch in _head(self.spools, self.rows):
            numbers = pl.int_range(done + 1, done + 1 + batch.height, dtype=pl.Int64)
            done += batch.height
            yield batch.with_columns(
                (pl.col("given_number") if self.survey.numbered else numbers).alias("image_id"),
                row_keys(batch),
            ).select([*PLAN_SCHEMA, *STORE_SCHEMA])

    @property
    def frame(self) -> pl.DataFrame:
        """Every row with `PLAN_SCHEMA`'s columns, in memory."""
        frames = (batch.select(list(PLAN_SCHEMA)) for batch in self.batches())
        return pl.concat([pl.DataFrame(schema=PLAN_SCHEMA), *frames])


def make_plan(listings: Sequence[Listing]) -> Plan:
    """Numbers the rows of all listings, in their order.

    A row's key is its given id, or without one its file name.

    Raises:
        ScaError: naming both rows, when two have one key.
    """
    survey = Survey.joined([listing.survey for listing in listings])
    _refuse_duplicates(listings, survey.key_hashes)
    return Plan(
        tuple(listing.rows for listing in listings),
        sum(len(listing.rows) for listing in listings),
        replace(survey, key_hashes=survey.key_hashes[:0].copy()),  # of millions they are much
        sum(listing.skipped_files for listing in listings),
    )


def plan_head(plan: Plan, limit: int) -> Plan:
    """The plan of the first `limit` rows, as if there were no others."""
    if limit >= len(plan):
        return plan
    surveys = [Survey.of(batch) for batch in _head(plan.spools, limit)]
    return replace(plan, rows=limit, survey=Survey.joined(surveys))


def _head(spools: Sequence[Spool], most: int) -> Iterator[pl.DataFrame]:
    """The first rows, as they were listed."""
    for spool in spools:
        for batch in spool.batches():
            if not most:
                return
            yield batch.head(most)
            most -= min(most, batch.height)


def plan_refs(plan: Plan) -> Iterator[ImageRef]:
    """Every image of the plan, in order."""
    for batch in plan.batches():
        for row in batch.iter_rows(named=True):
            yield row_ref(cast(PlanRow, row))


def row_ref(row: PlanRow) -> ImageRef:
    """The image of one row with `PLAN_SCHEMA`'s columns."""
    return ImageRef(
        image_id=row["image_id"],
        key=row["key"],
        uri=row["uri"],
        file_name=row["file_name"],
        prompts=prompts_from_cell(row["prompts"]),
        extra=json.loads(row["extra"]),
    )


def _refuse_duplicates(listings: Sequence[Listing], hashes: npt.NDArray[np.uint64]) -> None:
    """Compares the keys themselves where two of their hashes are equal."""
    hashes = np.sort(hashes)
    again = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    seen: dict[str, str] = {}
    for listing in listings if len(again) else ():
        for batch in listing.rows.batches(["position", "given_id", "uri", "file_name"]):
            keys = row_keys(batch)
            suspects = batch.with_columns(keys).filter(keys.hash().is_in(again))
            for position, given_id, uri, _, key in suspects.iter_rows():
                place = listing.place(position, uri)
                if key in seen:
                    what = key if given_id is None else f"image_id {json.dumps(key)}"
                    fix = "list each image once, or give every row an image_id"
                    if given_id is not None:
                        fix = "give every row an id of its own"
                    raise ScaError(f"{place}: {what} stands already in {seen[key]}; {fix}")
                seen[key] = place
