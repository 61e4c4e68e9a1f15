"""`--set key=value`: one number of a recipe changed, checked against its type."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from sca_batch.errors import ScaError

__all__ = ["with_settings"]

R = TypeVar("R")


def with_settings(recipe: R, settings: Iterable[str]) -> R:
    """The recipe with `key=value` applied; `sizes.image_size=128` reaches into a part of it.

    Values are JSON (`1e-4`, `true`, `[0.1, 2.0]`, `null`), or the bare text where text is meant.

    Raises:
        ScaError: for a key that the recipe does not have and a value of another type.
    """
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ScaError(f"--set {setting}: expected key=value, say lr=2e-4")
        recipe = _set(recipe, key.strip(), key.strip().split("."), text.strip())
    return recipe


def _set(part: Any, key: str, path: list[str], text: str) -> Any:
    hints = typing.get_type_hints(type(part))
    names = [field.name for field in dataclasses.fields(part) if field.name != "name"]
    if path[0] not in names:
        near = difflib.get_close_matches(path[0], names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(names)}"
        raise ScaError(f"--set {key}: this recipe has no {path[0]}; {hint}")
    if len(path) > 1:
        inner = getattr(part, path[0])
        if not dataclasses.is_dataclass(inner):
            raise ScaError(f"--set {key}: {path[0]} has no parts")
        return dataclasses.replace(part, **{path[0]: _set(inner, key, path[1:], text)})
    expected = hints[path[0]]
    value = _converted(_parsed(text, expected), expected)
    if value is _WRONG:
        raise ScaError(f"--set {key}={text}: expected {_shown(expected)}")
    return dataclasses.replace(part, **{path[0]: value})


_WRONG = object()


def _parsed(text: str, expected: Any) -> Any:
    if expected is str:
        return text.removeprefix('"').removesuffix('"')
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return text


def _converted(value: Any, expected: Any) -> Any:
    """The value as `expected`, or `_WRONG`."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        found = (_converted(value, kind) for kind in arguments)
        return next((item for item in found if item is not _WRONG), _WRONG)
    if expected is type(None):
        return None if value is None or value == "none" else _WRONG
    if expected is bool:
        return value if isinstance(value, bool) else _WRONG
    if expected is int:
        whole = isinstance(value, float) and value.is_integer()
        return int(value) if _is_number(value) and (whole or isinstance(value, int)) else _WRONG
    if expected is float:
        return float(value) if _is_number(value) else _WRONG
    if expected is str:
        return value if isinstance(value, str) else _WRONG
    if origin is tuple:
        return _tuple(value, arguments)
    if dataclasses.is_dataclass(expected) and isinstance(value, list):
        kinds = typing.get_type_hints(expected).values()
        if len(value) != len(kinds):
            return _WRONG
        items = [_converted(item, kind) for item, kind in zip(value, kinds, strict=True)]
        made: Any = expected
        return _WRONG if any(item is _WRONG for item in items) else made(*items)
    return _WRONG


def _tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    if isinstance(value, str):
        value = [value] if value else []
    if not isinstance(value, list):
        return _WRONG
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _WRONG
    items = tuple(_converted(item, kind) for item, kind in zip(value, kinds, strict=True))
    return _WRONG if any(item is _WRONG for item in items) else items


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(expected: Any) -> str:
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if expected in simple:
        return simple[expected]
    shown = str(expected).replace("typing.", "").replace("sca_batch.train.recipes.", "")
    return f"JSON for {shown}"
