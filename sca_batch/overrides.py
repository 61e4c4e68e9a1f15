"""`--set key=value`: one number of a recipe changed, checked against its type."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import TypeVar

from sca_batch.errors import ScaError
from sca_batch.options import replace_fields

__all__ = ["with_settings"]

R = TypeVar("R")


def with_settings(recipe: R, settings: Iterable[str]) -> R:
    """The recipe with `key=value` applied; `sizes.image_size=128` reaches into a part of it.

    Values are JSON (`1e-4`, `true`, `[0.1, 2.0]`, `null`), or the bare text where text is meant;
    lists may also be words between commas. All are applied at once, since a recipe may check them
    against each other.

    Raises:
        ScaError: for a key that the recipe does not have and a value of another type.
    """
    changes: dict[tuple[str, ...], dict[str, object]] = {}
    for setting in settings:
        key, separator, text = (part.strip() for part in setting.partition("="))
        if not separator:
            raise ScaError(f"--set {setting}: expected key=value, say lr=2e-4")
        *owner, name = key.split(".")
        part: object = recipe
        for step in owner:
            _hint(part, step, key)
            part = getattr(part, step)
            if not dataclasses.is_dataclass(part):
                raise ScaError(f"--set {key}: {step} has no parts")
        expected = _hint(part, name, key)
        try:
            value = _converted(_parsed(text, expected), expected)
        except ValueError:
            raise ScaError(f"--set {key}={text}: expected {_shown(expected)}") from None
        changes.setdefault(tuple(owner), {})[name] = value
    return replace_fields(recipe, changes)


def _hint(part: object, name: str, key: str) -> object:
    """The type of a part's field."""
    hints = {n: kind for n, kind in typing.get_type_hints(type(part)).items() if n != "name"}
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(hints)}"
        raise ScaError(f"--set {key}: this recipe has no {name}; {hint}")
    return hints[name]


def _parsed(text: str, expected: object) -> object:
    if expected is str:
        return text.removeprefix('"').removesuffix('"')
    if typing.get_origin(expected) is tuple and not text.startswith("["):
        return text
    try:
        value: object = json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return text
    return value


def _converted(value: object, expected: object) -> object:
    """The value as `expected`; a ValueError where it is something else."""
    origin, kinds = typing.get_origin(expected), typing.get_args(expected)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if origin in (typing.Union, types.UnionType):
        for kind in kinds:
            with contextlib.suppress(ValueError):
                return _converted(value, kind)
    elif expected is int and number is not None and float(number).is_integer():
        return int(number)
    elif expected is float and number is not None:
        return float(number)
    elif (expected is str and isinstance(value, str)) or (
        expected is bool and isinstance(value, bool)
    ):
        return value
    elif expected is type(None) and value in (None, "none"):
        return None
    elif origin is tuple and isinstance(value, str | list):
        words = value.strip("[]").split(",") if isinstance(value, str) else value
        items = [word.strip() if isinstance(word, str) else word for word in words if word != ""]
        each = kinds[:1] * len(items) if kinds[1:] == (Ellipsis,) else kinds
        if isinstance(value, str):
            items = [_parsed(item, kind) for item, kind in zip(items, each, strict=True)]
        return tuple(_converted(item, kind) for item, kind in zip(items, each, strict=True))
    elif isinstance(value, list) and dataclasses.is_dataclass(expected):
        each = tuple(typing.get_type_hints(expected).values())
        made = (_converted(item, kind) for item, kind in zip(value, each, strict=True))
        return typing.cast(type, expected)(*made)
    raise ValueError(value)


def _shown(expected: object) -> str:
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if isinstance(expected, type) and expected in simple:
        return simple[expected]
    shown = str(expected).replace("typing.", "").replace("sca_batch.train.recipes.", "")
    return f"JSON for {shown}"
