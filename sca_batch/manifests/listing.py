"""A listing: what one source holds, as rows on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from sca_batch.storage.spool import Spool

__all__ = ["LISTING_SCHEMA", "STORE_SCHEMA", "Listing"]

# What an object store says of its objects when it lists them; null for everything else.
STORE_SCHEMA: dict[str, pl.DataType] = {"size": pl.Int64(), "etag": pl.String()}
LISTING_SCHEMA: dict[str, pl.DataType] = {
    "position": pl.Int64(),  # line, row or index in the source, for messages
    "given_number": pl.Int64(),
    "given_id": pl.String(),
    "uri": pl.String(),
    "file_name": pl.String(),
    "prompts": pl.String(),
    "extra": pl.String(),
    **STORE_SCHEMA,
}


@dataclass(frozen=True)
class Listing:
    """What one source lists: rows with `LISTING_SCHEMA`'s columns, and how to point into it."""

    name: str
    rows: Spool = field(repr=False)
    unit: Literal["line", "row", "index", "file"] = "file"
    skipped_files: int = 0

    @property
    def frame(self) -> pl.DataFrame:
        """Every row, in memory."""
        return self.rows.frame()

    def place(self, position: int, uri: str) -> str:
        """Where a row stands, as messages say it."""
        if self.unit == "file":
            return f"{uri} (listed by {self.name})"
        if self.unit == "index":
            return f"{self.name}, images[{position}]"
        return f"{self.name}, {self.unit} {position}"
