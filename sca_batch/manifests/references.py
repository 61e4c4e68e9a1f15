"""Manifests whose regions have reference captions: what a captioner is trained and judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sca_batch.errors import ScaError
from sca_batch.manifests.read import manifest_images
from sca_batch.storage.digests import digest_rows

__all__ = ["CaptionedImage", "CaptionedImages", "read_captioned"]

# Arrow and not polars: rows are read in forked processes, where polars' threads are not.
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "uri": pa.string(),
        "task": pa.string(),
        "boxes_xyxy": pa.list_(pa.list_(pa.float64())),
        "phrases": pa.list_(pa.list_(pa.string())),
    }
)
ROWS_AT_ONCE = 8192  # Python objects alive while a manifest is read


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image, the boxes in it as XYXY pixels (N, 4), and one or more phrases for each.

    `task` is which task tokens stand in front: the row's column `task`, or "caption".
    """

    key: str
    uri: str
    boxes_xyxy: npt.NDArray[np.float64]
    phrases: tuple[tuple[str, ...], ...]
    task: str = "caption"


@dataclass(frozen=True, eq=False)
class CaptionedImages:
    """The images of a manifest, in its order: rows of `SCHEMA`.

    Regions without a box or without a phrase are left out, and so are images without any;
    `num_regions` counts what is left and `left_out` says how much was not.
    """

    rows: pa.Table
    num_regions: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __getitem__(self, index: int) -> CaptionedImage:
        row = {name: self.rows[name][index].as_py() for name in SCHEMA.names}
        return CaptionedImage(
            key=row["key"],
            uri=row["uri"],
            boxes_xyxy=np.array(row["boxes_xyxy"], dtype=np.float64),
            phrases=tuple(map(tuple, row["phrases"])),
            task=row["task"],
        )

    def digest(self) -> str:
        """SHA-256 over the rows but not over where the images lie, hex."""
        return digest_rows(self.rows.drop_columns("uri"))


def read_captioned(path: Path) -> CaptionedImages:
    """Reads a manifest in any of its formats.

    Raises:
        ScaError: for a manifest that is wrong, and for one without captioned regions.
    """
    kept, left_out = 0, {"images": 0, "regions": 0}

    def captioned() -> Iterator[dict[str, object]]:
        nonlocal kept
        for _, row, uri, file_name in manifest_images(str(path)):
            prompts, references = row.prompts or (), row.references
            if len(references) != len(prompts):  # sentences about the image as a whole
                references = [[] for _ in prompts]
            pairs = [
                (prompt.box_xyxy, texts)
                for prompt, texts in zip(prompts, references, strict=True)
                if prompt.box_xyxy is not None and texts
            ]
            kept += len(pairs)
            left_out["regions"] += len(prompts) - len(pairs)
            if not pairs:
                left_out["images"] += 1
                continue
            yield {
                "key": str(file_name if row.given_id is None else row.given_id),
                "uri": uri,
                "task": str(row.extra.get("task") or "caption"),
                "boxes_xyxy": [box for box, _ in pairs],
                "phrases": [texts for _, texts in pairs],
            }

    rows, batches = captioned(), []
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(chunk, SCHEMA))
    if not kept:
        raise ScaError(
            f"{path}: no region has both a box and a phrase; expected the columns boxes_xyxy "
            "and references, one entry per region in each"
        )
    return CaptionedImages(pa.Table.from_batches(batches, SCHEMA), kept, left_out)
