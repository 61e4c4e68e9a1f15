"""The plan: every image of a run, numbered, in the order in which shards cut it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.listing import (
    PROMPTS,
    STORE_SCHEMA,
    Listing,
    PromptCell,
    prompts_from_cell,
)
from sca_batch.records import ImageRef
from sca_batch.storage.digests import RowsDigest

__all__ = [
    "PLAN_FILE",
    "PLAN_SCHEMA",
    "Plan",
    "Survey",
    "make_plan",
    "plan_head",
    "plan_refs",
    "row_ref",
]

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


FIRST_KEYS = 5  # that a survey shows


@dataclass(frozen=True)
class Survey:
    """What one look at every row of a plan tells: schemes of its URLs, and its regions."""

    schemes: frozenset[str]
    with_regions: int
    first_without_regions: str | None
    first_keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """One row per image. The rows stand on disk; only batches of them are ever held.

    `given_ids` says that the sources' ids are the images'; else rows count from 1.
    """

    listings: tuple[Listing, ...]
    given_ids: bool
    rows: int

    def __len__(self) -> int:
        return self.rows

    @property
    def skipped_files(self) -> int:
        """How many files folders held beside images."""
        return sum(listing.skipped_files for listing in self.listings)

    def batches(self) -> Iterator[pl.DataFrame]:
        """The rows in order, with the columns of `PLAN_SCHEMA` and of `STORE_SCHEMA`.

        `prompts` is null where regions are to be proposed; `extra` is a JSON object.
        """
        done = 0
        for listing in self.listings:
            for batch in listing.rows.batches():
                batch = batch.head(self.rows - done)
                if batch.is_empty():
                    return
                numbers = pl.int_range(done + 1, done + 1 + batch.height, dtype=pl.Int64)
                done += batch.height
                yield batch.with_columns(
                    (pl.col("given_number") if self.given_ids else numbers).alias("image_id"),
                    pl.coalesce("given_id", "file_name").alias("key"),
                ).select([*PLAN_SCHEMA, *STORE_SCHEMA])

    @property
    def frame(self) -> pl.DataFrame:
        """Every row with `PLAN_SCHEMA`'s columns, in memory."""
        frames = (batch.select(list(PLAN_SCHEMA)) for batch in self.batches())
        return pl.concat([pl.DataFrame(schema=PLAN_SCHEMA), *frames])

    @cached_property
    def digest(self) -> str:
        """sha256 of the rows' `PLAN_SCHEMA` columns, in hexadecimal."""
        digest = RowsDigest(list(PLAN_SCHEMA))
        for batch in self.batches():
            rows = batch.select(list(PLAN_SCHEMA))
            digest.add(rows.to_arrow(compat_level=pl.CompatLevel.oldest()))
        return digest.hexdigest()

    @cached_property
    def survey(self) -> Survey:
        """What the rows name and give, from one look at all of them."""
        schemes: set[str] = set()
        with_regions, without, keys = 0, None, list[str]()
        for batch in self.batches():
            found = batch["uri"].str.extract(r"^([A-Za-z][A-Za-z0-9+.-]*)://").drop_nulls()
            schemes.update(found.str.to_lowercase().unique())
            lacking = batch.filter(pl.col("prompts").is_null())
            with_regions += batch.height - lacking.height
            if without is None and lacking.height:
                without = str(lacking["key"][0])
            keys += batch["key"].head(FIRST_KEYS - len(keys)).to_list()
        return Survey(frozenset(schemes), with_regions, without, tuple(keys))


def make_plan(listings: Sequence[Listing]) -> Plan:
    """Numbers the rows of all listings, in their order.

    The given ids are kept when every row has one and all are integers; else rows count from 1.
    A row's key is its given id, or without one its file name.

    Raises:
        ScaError: naming both places, when two rows have one key.
    """
    _refuse_duplicates(listings)
    given_ids = all(
        batch["given_number"].null_count() == 0
        for listing in listings
        for batch in listing.rows.batches(["given_number"])
    )
    return Plan(tuple(listings), given_ids, sum(len(listing.rows) for listing in listings))


def plan_head(plan: Plan, limit: int) -> Plan:
    """The plan of the first `limit` rows."""
    if limit >= len(plan):
        return plan
    # Whether ids are given is the rows' own affair, not that of those which are left out.
    given_ids, left = True, limit
    for listing in plan.listings:
        for batch in listing.rows.batches(["given_number"]):
            given_ids &= batch["given_number"].head(left).null_count() == 0
            left -= min(left, batch.height)
    return Plan(plan.listings, given_ids, limit)


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


def _refuse_duplicates(listings: Sequence[Listing]) -> None:
    """Compares the keys' digests, 8 bytes each, and the keys themselves where two are equal."""
    hashes = [
        _keys(batch).hash().to_numpy()
        for listing in listings
        for batch in listing.rows.batches(["given_id", "file_name"])
    ]
    again = _repeated(np.concatenate(hashes))
    if not len(again):
        return
    seen: dict[str, tuple[Listing, int, str]] = {}
    suspects = pl.Series(again)
    for listing in listings:
        for batch in listing.rows.batches():
            keyed = batch.with_columns(_keys(batch).alias("key"))
            for row in keyed.filter(keyed["key"].hash().is_in(suspects)).iter_rows(named=True):
                here = (listing, row["position"], row["uri"])
                if row["key"] in seen:
                    raise _duplicate(row, here, seen[row["key"]])
                seen[row["key"]] = here


def _keys(batch: pl.DataFrame) -> pl.Series:
    return batch.select(pl.coalesce("given_id", "file_name").alias("key")).to_series()


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _duplicate(
    row: dict[str, Any], again: tuple[Listing, int, str], first: tuple[Listing, int, str]
) -> ScaError:
    places = [listing.place(position, uri) for listing, position, uri in (again, first)]
    if row["given_id"] is not None:
        what = f"image_id {json.dumps(row['key'])}"
        fix = "give every row an id of its own"
    else:
        what = row["key"]
        fix = "list each image once, or give every row an image_id"
    return ScaError(f"{places[0]}: {what} stands already in {places[1]}; {fix}")
