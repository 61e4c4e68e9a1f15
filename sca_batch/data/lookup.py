"""One image of a dataset, by id, key or file name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from sca_batch.data.shards import iter_rows, read_run
from sca_batch.errors import ScaError

__all__ = ["find_row"]


def find_row(dataset: Path, image: str) -> dict[str, Any]:
    """The row whose key, file name, id or bare file name is `image`, in that order of preference.

    Raises:
        ScaError: when there is none, naming the nearest, or when a bare file name fits several.
    """
    read_run(dataset)
    names: list[str] = []
    place: tuple[int, int] | None = None  # (how well it fits, which row); less is better
    several: list[str] = []
    for row_number, row in enumerate(iter_rows(dataset, ["image_id", "key", "file_name"])):
        names.append(row["file_name"])
        values = (row["key"], row["file_name"], str(row["image_id"]), Path(row["file_name"]).name)
        if image in values:
            fit = values.index(image)
            if fit == 3:
                several.append(row["file_name"])
            if place is None or fit < place[0]:
                place = fit, row_number
    if place is None:
        near = difflib.get_close_matches(image, names, n=3) or names[:3]
        raise ScaError(f"{dataset} has no image {image!r}; it has, for example, {', '.join(near)}")
    if place[0] == 3 and len(several) > 1:
        raise ScaError(f"{image!r} could be {' or '.join(several[:3])}; name it whole")
    for row_number, row in enumerate(iter_rows(dataset)):
        if row_number == place[1]:
            return row
    raise AssertionError("the row was there a moment ago")
