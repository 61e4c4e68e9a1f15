"""DATASET arguments: a folder, or the URL of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sca_batch.storage.stores import AnyPath

__all__ = ["DATASET", "DATASET_OR_FILE"]


class _Dataset(click.ParamType["AnyPath"]):
    """A dataset that exists, checked as click checks paths; URLs are asked when they are read."""

    name = "dataset"

    def __init__(self, *, file_okay: bool) -> None:
        self._path = click.Path(exists=True, file_okay=file_okay)

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> AnyPath:
        from pathlib import Path

        from sca_batch.storage.stores import any_path

        found = any_path(value)
        if isinstance(found, Path):
            self._path.convert(str(found), param, ctx)
        return found


DATASET = _Dataset(file_okay=False)
DATASET_OR_FILE = _Dataset(file_okay=True)
