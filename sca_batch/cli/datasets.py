"""DATASET arguments: a folder, or the URL of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sca_batch.storage.stores import AnyPath

__all__ = ["DATASET", "DATASET_OR_FILE"]


class _Dataset(click.ParamType["AnyPath"]):
    """What exists, checked as click checks paths; URLs are asked when they are read."""

    name = "dataset"

    def __init__(self, *, file_okay: bool) -> None:
        self._path = click.Path(exists=True, file_okay=file_okay)

    def convert(self, value: Any, param: Any, ctx: Any) -> AnyPath:
        from pathlib import Path

        from sca_batch.storage.stores import any_path

        place = any_path(value)
        if isinstance(place, Path):
            self._path.convert(str(place), param, ctx)
        return place


DATASET = _Dataset(file_okay=False)
DATASET_OR_FILE = _Dataset(file_okay=True)
