"""Options and tables that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

__all__ = [
    "IN_FILE", "IN_FOLDER", "OUT_FILE", "OUT_FOLDER", "aligned", "box_format_option",
    "device_option",
]  # fmt: skip

IN_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
IN_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUT_FOLDER = click.Path(file_okay=False, path_type=Path)

F = TypeVar("F", bound=Callable[..., object])


def box_format_option() -> Callable[[F], F]:
    return click.option(
        "--box-format",
        type=click.Choice(["xyxy", "xywh"]),
        help="What a manifest's bare bbox or boxes column means.",
    )


def device_option() -> Callable[[F], F]:
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )


def aligned(rows: Sequence[Sequence[str]], *, text_columns: int | None = None) -> list[str]:
    """One line per row, in columns: the first `text_columns`, or all, begin alike, others end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    count = len(widths) if text_columns is None else text_columns
    return [
        "  ".join(
            cell.ljust(width) if i < count else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
