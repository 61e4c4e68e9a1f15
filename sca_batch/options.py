"""Options beside the fields that hold them: what a request's field means to whoever types it."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar, Unpack

from sca_batch.errors import ScaError

__all__ = [
    "Option", "OptionField", "check_options", "option", "option_fields", "option_values",
    "replace_fields", "with_options",
]  # fmt: skip

T = TypeVar("T")

# Forms of a value that its type does not tell; `sca_batch.cli.options` reads them as typed.
Form = Literal["duration", "failures", "names", "codes", "repeated"]


class Told(TypedDict, total=False):
    """The arguments of `Option` but its help."""

    content: bool
    kept: bool
    least: float
    most: float
    shown: str
    form: Form
    metavar: str
    name: str
    group: str
    short: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The facts of one field that the command line and a run need.

    `content` marks what records depend on: it is part of a run's fingerprint. `kept` marks what a
    run that is resumed gives back where it is left out: all content, and what leads to it. `least`
    and `most` bound numbers. `shown` says a default that its value does not. `name` and `group`
    stand in for the field's own name and its dataclass's group.
    """

    help: str = ""
    content: bool = False
    kept: bool = False
    least: float | None = None
    most: float | None = None
    shown: str | None = None
    form: Form | None = None
    metavar: str | None = None
    name: str | None = None
    group: str | None = None
    short: str | None = None
    environment: str | None = None


def option(default: T, help: str = "", **told: Unpack[Told]) -> T:
    """A dataclass field that is an option of a command; see `Option`."""
    field: T = dataclasses.field(default=default, metadata={"option": Option(help=help, **told)})
    return field


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option as a dataclass has it: its type is without None, which `optional` tells."""

    owner: tuple[str, ...]  # names of the fields that lead to its dataclass
    field: str
    default: object
    kind: type
    choices: tuple[str, ...]
    optional: bool
    group: str
    option: Option

    @property
    def name(self) -> str:
        return self.option.name or self.field

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


def option_fields(
    owner: type, group: str = "", path: tuple[str, ...] = ()
) -> Iterator[OptionField]:
    """The options of a dataclass in their order, and those of the dataclasses in its fields.

    A field's metadata may name the `group` of the dataclass in it.
    """
    hints = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
        kind, option = hints[field.name], field.metadata.get("option")
        if option is None and dataclasses.is_dataclass(kind):
            inner = field.metadata.get("group", group)
            yield from option_fields(typing.cast(type, kind), inner, (*path, field.name))
        elif option is not None:
            union = typing.get_origin(kind) in (types.UnionType, typing.Union)
            parts = typing.get_args(kind) if union else (kind,)
            bare = next(part for part in parts if part is not type(None))
            kind = typing.get_origin(bare) or bare
            item = typing.get_args(bare)[0] if kind is tuple else bare
            is_choice = typing.get_origin(item) is Literal
            yield OptionField(
                path,
                field.name,
                field.default,
                str if kind is Literal else kind,
                typing.get_args(item) if is_choice else (),
                type(None) in parts,
                option.group or group,
                option,
            )


def option_values(settings: object) -> dict[str, object]:
    """The value of every option of a dataclass, by its name."""
    values: dict[str, object] = {}
    for found in option_fields(type(settings)):
        part = settings
        for name in found.owner:
            part = getattr(part, name)
        values[found.name] = getattr(part, found.field)
    return values


def with_options(settings: T, values: Mapping[str, object]) -> T:
    """The dataclass with the options in `values`, by their names, replaced at any depth."""
    changed: dict[tuple[str, ...], dict[str, object]] = {}
    for found in option_fields(type(settings)):
        if found.name in values:
            value = _converted(values[found.name], found.kind)
            changed.setdefault(found.owner, {})[found.field] = value
    return replace_fields(settings, changed)


def replace_fields(
    part: T, changed: Mapping[tuple[str, ...], Mapping[str, object]], path: tuple[str, ...] = ()
) -> T:
    """The dataclass with fields replaced at any depth, those of one part at once.

    `changed` has the fields of each part by the names that lead to it; `path` leads to `part`.
    """
    fields = dict(changed.get(path, {}))
    deeper = {
        key[len(path)] for key in changed if len(key) > len(path) and key[: len(path)] == path
    }
    for name in deeper:
        fields[name] = replace_fields(getattr(part, name), changed, (*path, name))
    return dataclasses.replace(part, **fields) if fields else part  # type: ignore[type-var]


def _converted(value: object, kind: type) -> object:
    """A value as JSON, a command line or a script has it, as its field has it."""
    if value is None or isinstance(value, kind):
        return value
    if kind is tuple:
        words = value.split(",") if isinstance(value, str) else value
        if isinstance(words, Iterable):
            return tuple(word.strip() if isinstance(word, str) else word for word in words)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    read: Callable[[object], object] | None = getattr(kind, "of", None)
    return value if read is None else read(value)


def check_options(settings: object) -> None:
    """Compares the options of one dataclass, not of those in it, with their types and bounds.

    Raises:
        ScaError: naming the option as the command line spells it, and what was expected.
    """
    for found in option_fields(type(settings)):
        if found.owner:
            continue
        value = getattr(settings, found.field)
        if value is None and found.optional:
            continue
        if found.choices:
            for item in value if isinstance(value, tuple) else (value,):
                if item not in found.choices:
                    raise ScaError(f"{found.flag} {item!r}: expected {', '.join(found.choices)}")
        elif found.kind in _NAMES and not _fits(
            value, found.kind, found.option.least, found.option.most
        ):
            raise ScaError(f"{found.flag} is {value}; expected {_expected(found)}")


_NAMES = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}


def _fits(value: object, kind: type, least: float | None, most: float | None) -> bool:
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _expected(found: OptionField) -> str:
    text, least, most = _NAMES[found.kind], found.option.least, found.option.most
    if least is not None and most is not None:
        return f"{text} from {least:g} to {most:g}"
    return text if least is None else f"{text} of at least {least:g}"
