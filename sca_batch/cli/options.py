"""Options of commands, made from the fields of the dataclasses that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sca_batch.errors import ScaError
from sca_batch.options import OptionField, option_fields

__all__ = ["Duration", "GroupedCommand", "given_options", "options_of"]

F = TypeVar("F", bound=Callable[..., object])


class Duration(click.ParamType[float]):
    """7h45m, 90m, 30s, or seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(
            r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?|(\d+(?:\.\d+)?)", str(value).strip()
        )
        if not found or not any(found.groups()):
            self.fail(f"{value!r}; expected such as 7h45m, 90m or 30s", param, ctx)
        hours, minutes, seconds, bare = (float(group or 0) for group in found.groups())
        return hours * 3600 + minutes * 60 + seconds + bare


class _Failures(click.ParamType[object]):
    name = "N|P%"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        from sca_batch.job.request import Failures

        try:
            return value if isinstance(value, Failures) else Failures.of(value)
        except ScaError as error:
            self.fail(str(error), param, ctx)


class _Names(click.ParamType[tuple[str, ...]]):
    """Words between commas."""

    name = "text"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(name.strip() for name in str(value).split(",") if name.strip())


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups, those without one last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                # A group stands where its last option is: one may be named earlier, beside others.
                title = "Other options"
                if isinstance(param, _GroupedOption):
                    title = param.group or "Options"
                groups[title] = [*groups.pop(title, []), record]
        for title in sorted(groups, key=lambda name: name == "Other options"):
            with formatter.section(title):
                formatter.write_dl(groups[title])


class _GroupedOption(click.Option):
    group = ""

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        if "default" in extra:
            extra["default"] = extra["default"].strip("()")
        return extra


def options_of(owner: type) -> Callable[[F], F]:
    """A decorator that gives a command the options of a dataclass, under their own names."""

    def decorate(function: F) -> F:
        for found in reversed(list(option_fields(owner))):
            function = _decorator(found)(function)
        return function

    return decorate


def given_options(ctx: click.Context, owner: type) -> dict[str, object]:
    """The options of a dataclass that were typed, or that the environment gives."""
    return {
        found.name: ctx.params[found.name]
        for found in option_fields(owner)
        if ctx.get_parameter_source(found.name) is not click.core.ParameterSource.DEFAULT
    }


def _decorator(found: OptionField) -> Callable[[F], F]:
    told = found.option
    is_flag = found.kind is bool

    class Option(_GroupedOption):
        group = found.group

    return click.option(
        *([told.short] if told.short else []),
        found.flag,
        found.name,
        cls=Option,
        type=None if is_flag else _type(found),
        is_flag=is_flag,
        # Codes may be left out: then all are meant.
        **({"flag_value": "all"} if told.form == "codes" else {}),
        multiple=told.form == "repeated",
        default=found.default,
        show_default=told.shown or not (is_flag or found.default in (None, ())),
        metavar=told.metavar,
        envvar=told.environment,
        help=told.help,
    )


def _type(found: OptionField) -> click.ParamType[Any]:
    forms: dict[str | None, click.ParamType[Any]] = {
        "duration": Duration(), "failures": _Failures(), "names": _Names(), "codes": _Names(),
        "repeated": click.STRING,
    }  # fmt: skip
    if found.choices:
        return click.Choice(found.choices)
    if found.option.form is not None:
        return forms[found.option.form]
    kinds: dict[type, click.ParamType[Any]] = {
        int: click.INT,
        float: click.FLOAT,
        str: click.STRING,
    }
    return kinds.get(found.kind) or click.Path(path_type=Path)
