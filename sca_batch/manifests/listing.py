"""A listing: what one source holds, as rows on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal, TypedDict, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from sca_batch.boxes import box_tuple
from sca_batch.manifests.row import Row, dump_json
from sca_batch.records import Prompt, Rle
from sca_batch.storage.spool import Spool

__all__ = [
    "LISTING_SCHEMA", "PROMPTS", "STORE_SCHEMA", "Listing", "PromptCell", "Survey", "Unit",
    "listing_frames", "prompts_from_cell", "prompts_to_cell", "row_keys",
]  # fmt: skip

Unit = Literal["line", "row", "index", "file"]  # what a position in a source is called

# A region that was given, with the names and types that a dataset's regions have.
PROMPTS = pl.List(
    pl.Struct(
        {
            "prompt_box_xyxy": pl.List(pl.Float64()),
            "points": pl.List(pl.List(pl.Float64())),
            "labels": pl.List(pl.Int32()),
            "segmentation": pl.Struct({"size": pl.List(pl.Int32()), "counts": pl.String()}),
            "prompt_id": pl.String(),
        }
    )
)
# What an object store says of its objects when it lists them; null for everything else.
STORE_SCHEMA: dict[str, pl.DataType] = {"size": pl.Int64(), "etag": pl.String()}
LISTING_SCHEMA: dict[str, pl.DataType] = {
    "position": pl.Int64(),  # line, row or index in the source, for messages
    "given_number": pl.Int64(),
    "given_id": pl.String(),
    "uri": pl.String(),
    "file_name": pl.String(),
    "prompts": PROMPTS,  # null where regions are to be proposed
    "extra": pl.String(),  # a JSON object
    **STORE_SCHEMA,
}
# Python objects alive while a manifest is read; rows with masks are long.
ROWS_AT_ONCE = 50_000
BYTES_AT_ONCE = 16 << 20
FIRST_KEYS = 5  # that a survey shows


class PromptCell(TypedDict):
    """One region in a row's list of `prompts`, as Arrow gives it."""

    prompt_box_xyxy: list[float] | None
    points: list[list[float]] | None
    labels: list[int] | None
    segmentation: Rle | None
    prompt_id: str | None


def prompts_to_cell(prompts: tuple[Prompt, ...] | None) -> list[PromptCell] | None:
    """The given regions of a row as a column of the type `PROMPTS` holds them."""
    if prompts is None:
        return None
    return [
        {
            "prompt_box_xyxy": None if prompt.box_xyxy is None else list(prompt.box_xyxy),
            "points": [list(point) for point in prompt.points_xy] or None,
            "labels": list(prompt.labels) or None,
            "segmentation": prompt.mask_rle,
            "prompt_id": prompt.prompt_id,
        }
        for prompt in prompts
    ]


def prompts_from_cell(cell: list[PromptCell] | None) -> tuple[Prompt, ...] | None:
    """The given regions of a row from its cell in a column of the type `PROMPTS`."""
    if cell is None:
        return None
    return tuple(
        Prompt(
            None if region["prompt_box_xyxy"] is None else box_tuple(region["prompt_box_xyxy"]),
            tuple((x, y) for x, y in region["points"] or ()),
            tuple(region["labels"] or ()),
            region["segmentation"],
            region["prompt_id"],
        )
        for region in cell
    )


@dataclass(frozen=True, eq=False)
class Survey:
    """The findings of one look at every row: keys, URLs, regions, and if all ids are integers.

    `key_hashes` has 8 bytes of each row.
    """

    numbered: bool
    key_hashes: npt.NDArray[np.uint64]
    first_keys: tuple[str, ...]
    schemes: frozenset[str]
    with_regions: int
    first_without_regions: str | None

    @classmethod
    def of(cls, rows: pl.DataFrame) -> Survey:
        """The survey of rows with `LISTING_SCHEMA`'s columns."""
        keys = row_keys(rows)
        schemes = rows["uri"].str.extract(r"^([A-Za-z][A-Za-z0-9+.-]*)://").drop_nulls()
        without = keys.filter(rows["prompts"].is_null())
        return cls(
            numbered=rows["given_number"].null_count() == 0,
            key_hashes=keys.hash().to_numpy(),
            first_keys=tuple(keys.head(FIRST_KEYS)),
            schemes=frozenset(schemes.str.to_lowercase().unique()),
            with_regions=rows.height - len(without),
            first_without_regions=without[0] if len(without) else None,
        )

    @classmethod
    def joined(cls, surveys: Sequence[Survey]) -> Survey:
        """One survey of the rows of all, in their order."""
        without = (survey.first_without_regions for survey in surveys)
        return cls(
            numbered=all(survey.numbered for survey in surveys),
            key_hashes=np.concatenate(
                [np.zeros(0, np.uint64), *(survey.key_hashes for survey in surveys)]
            ),
            first_keys=tuple(
                islice(chain.from_iterable(survey.first_keys for survey in surveys), FIRST_KEYS)
            ),
            schemes=frozenset().union(*(survey.schemes for survey in surveys)),
            with_regions=sum(survey.with_regions for survey in surveys),
            first_without_regions=next((key for key in without if key is not None), None),
        )


def row_keys(rows: pl.DataFrame) -> pl.Series:
    """The identity of each row of a listing: its given id, or without one its file name."""
    return rows.select(pl.coalesce("given_id", "file_name").alias("key")).to_series()


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one source: rows with `LISTING_SCHEMA`'s columns, and how to point into it."""

    name: str
    rows: Spool = field(repr=False)
    survey: Survey = field(repr=False)
    unit: Unit = "file"
    skipped_files: int = 0

    @classmethod
    def of(
        cls, name: str, frames: Iterable[pl.DataFrame], unit: Unit = "file", skipped_files: int = 0
    ) -> Listing:
        """The rows of all frames, written to disk and surveyed in one go."""
        rows, surveys = Spool(LISTING_SCHEMA), []
        for frame in frames:
            surveys.append(Survey.of(frame))
            rows.add(frame)
        return cls(name, rows, Survey.joined(surveys), unit, skipped_files)

    @property
    def frame(self) -> pl.DataFrame:
        """Every row, in memory."""
        return self.rows.frame()

    def place(self, position: int, uri: str) -> str:
        """The position of a row, as messages say it."""
        if self.unit == "file":
            return f"{uri} (listed by {self.name})"
        if self.unit == "index":
            return f"{self.name}, images[{position}]"
        return f"{self.name}, {self.unit} {position}"


def listing_frames(rows: Iterable[tuple[int, Row, str, str]]) -> Iterator[pl.DataFrame]:
    """Position, row, uri and file name of each image -> frames with `LISTING_SCHEMA`'s columns."""
    schema = pl.DataFrame(schema=LISTING_SCHEMA).to_arrow().schema
    chunk: list[dict[str, object]] = []
    size = 0
    for position, row, uri, file_name in rows:
        extra = dump_json(row.extra)
        size += len(extra) + sum(map(_size, row.prompts or ()))
        number = row.given_id if isinstance(row.given_id, int) else None
        chunk.append(
            {
                "position": position,
                "given_number": number,
                "given_id": None if row.given_id is None else str(row.given_id),
                "uri": uri,
                "file_name": file_name,
                "prompts": prompts_to_cell(row.prompts),
                "extra": extra,
            }
        )
        if len(chunk) == ROWS_AT_ONCE or size > BYTES_AT_ONCE:
            yield cast(pl.DataFrame, pl.from_arrow(pa.Table.from_pylist(chunk, schema)))
            chunk, size = [], 0
    if chunk:
        yield cast(pl.DataFrame, pl.from_arrow(pa.Table.from_pylist(chunk, schema)))


def _size(prompt: Prompt) -> int:
    """About the bytes that a region takes as Python objects."""
    mask = 0 if prompt.mask_rle is None else len(prompt.mask_rle["counts"])
    return 512 + 128 * len(prompt.points_xy) + mask
