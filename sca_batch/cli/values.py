"""Kinds of values, and options, that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["DURATION", "FAILURES", "Failures", "box_format_option", "device_option"]

Decorator = Callable[[Any], Any]


class _Duration(click.ParamType[float]):
    """7h45m, 90m, 30s, or seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", value.strip())
        if not found or not any(found.groups()):
            self.fail(f"{value!r}; expected such as 7h45m, 90m or 30s", param, ctx)
        hours, minutes, seconds = (float(group or 0) for group in found.groups())
        return hours * 3600 + minutes * 60 + seconds


@dataclass(frozen=True)
class Failures:
    """How many images may fail: a number, or a share of all."""

    count: int = 0
    share: float | None = None

    def allow(self, failed: int, images: int) -> bool:
        limit = self.count if self.share is None else self.share * images
        return failed <= limit

    def __str__(self) -> str:
        return str(self.count) if self.share is None else f"{self.share:.6g}"


class _Failures(click.ParamType[Failures]):
    name = "N|P%"

    def convert(self, value: Any, param: Any, ctx: Any) -> Failures:
        if isinstance(value, Failures):
            return value
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", str(value).strip())
        if not found or (found[2] and float(found[2]) > 100):
            self.fail(
                f"{value!r}; expected a number such as 5, or a share such as 0.1%", param, ctx
            )
        return Failures(int(found[1])) if found[1] else Failures(share=float(found[2]) / 100)


DURATION, FAILURES = _Duration(), _Failures()


def box_format_option() -> Decorator:
    return click.option(
        "--box-format",
        type=click.Choice(["xyxy", "xywh"]),
        help="What a manifest's bare bbox or boxes column means.",
    )


def device_option() -> Decorator:
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )
