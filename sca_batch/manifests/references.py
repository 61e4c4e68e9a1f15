"""Manifests whose regions have reference captions: what a captioner is trained and judged on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.read import read_manifest

__all__ = ["CaptionedImage", "CaptionedImages", "read_captioned"]


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


class CaptionedImages:
    """The images of a manifest, in its order; each row is parsed when it is asked for.

    Regions without a box or without a phrase are left out, and so are images without any;
    `num_regions` counts what is left and `left_out` says how much was not.
    """

    def __init__(self, name: str, frame: pl.DataFrame) -> None:
        self.name = name
        counted = [_count(row) for row in frame.select("prompts", "extra").iter_rows()]
        usable = [usable for usable, _ in counted]
        kept = pl.Series([number > 0 for number in usable], dtype=pl.Boolean)
        self.num_regions = sum(usable)
        self.left_out = {
            "images": int(frame.height - kept.sum()),
            "regions": sum(total for _, total in counted) - self.num_regions,
        }
        if not self.num_regions:
            raise ScaError(
                f"{name}: no region has both a box and a phrase; expected the columns boxes_xyxy "
                "and references, one entry per region in each"
            )
        # Arrow and not polars: rows are read in forked processes, where polars' threads are not.
        table = frame.filter(kept).select("given_id", "file_name", "uri", "prompts", "extra")
        self._table = table.to_arrow(compat_level=pl.CompatLevel.oldest())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> CaptionedImage:
        row = {name: self._table[name][index].as_py() for name in self._table.column_names}
        pairs = _pairs(row["prompts"], row["extra"])
        key = row["given_id"] if row["given_id"] is not None else row["file_name"]
        return CaptionedImage(
            key=str(key),
            uri=row["uri"],
            boxes_xyxy=np.array([box for box, _ in pairs], dtype=np.float64).reshape(-1, 4),
            phrases=tuple(tuple(texts) for _, texts in pairs),
            task=str(json.loads(row["extra"]).get("task") or "caption"),
        )

    def digest(self) -> str:
        """SHA-256 over the rows but not over where the images lie, hex."""
        digest = hashlib.sha256()
        for name in ("given_id", "file_name", "prompts", "extra"):
            for value in self._table[name]:
                digest.update(str(value.as_py()).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def read_captioned(path: Path) -> CaptionedImages:
    """Reads a manifest in any of its formats.

    Raises:
        ScaError: for a manifest that is wrong, and for one without captioned regions.
    """
    return CaptionedImages(str(path), read_manifest(str(path)).frame)


def _pairs(prompts: str | None, extra: str) -> list[tuple[list[float], list[str]]]:
    regions = json.loads(prompts) if prompts else []
    references = json.loads(extra).get("references") or []
    if len(references) != len(regions):  # sentences about the image as a whole
        return []
    return [
        (region["box"], [texts] if isinstance(texts, str) else texts)
        for region, texts in zip(regions, references, strict=True)
        if "box" in region and texts
    ]


def _count(row: tuple[str | None, str]) -> tuple[int, int]:
    prompts, extra = row
    return len(_pairs(prompts, extra)), len(json.loads(prompts)) if prompts else 0
