"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

__all__ = ["box_format_option", "device_option"]

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
