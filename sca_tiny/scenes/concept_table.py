"""Builds concepts.json: `python -m sca_tiny concepts`.

The names come from emojibase-data and the words for them from `concept_words.txt`; which styles
draw a name, and in which colours, is measured from the art. Writing needs the packages of
`art.py`; reading `concepts.json` needs none of them.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sca_batch.errors import ScaError
from sca_tiny.scenes.art import (
    PACKAGES,
    TRAIN_STYLES,
    Package,
    default_art_dir,
    drawings_of,
    fetch_package,
    names_drawn_by,
)
from sca_tiny.scenes.colours import COLOUR_WORDS, colour_word
from sca_tiny.scenes.words import CONCEPTS_FILE, IconName, plural_of

__all__ = ["Entry", "Rebuilt", "build_table", "read_words", "rebuild_table", "slug_of"]

WORDS_FILE = Path(__file__).with_name("concept_words.txt")
EMOJIBASE = Package("emojibase-data", "17.0.0")
# Smileys, people, animals, food, travel, activities and objects; not symbols, flags, components.
GROUPS = (0, 1, 3, 4, 5, 6, 7)
# Nobody calls a person in blue a blue person, or a city at dusk a purple one.
WITHOUT_COLOUR = ("person", "place")
LEAST_STYLES = 3  # training styles that must draw a concept


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `concept_words.txt`; `drawings` are CLDR names."""

    label: str
    kind: str
    drawings: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    measure: str | None = None
    article: str | None = None
    plural: str | None = None
    upright: bool = False
    uncounted: bool = False


def read_words(path: Path = WORDS_FILE) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """The hand-written concepts, and what is left out with the reason for each.

    Left out are CLDR names, or a style and a name where only that style's drawing is.

    Raises:
        ScaError: a line that cannot be read, or a name, label or synonym that comes twice.
    """
    kind = ""
    entries: list[Entry] = []
    dropped: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            kind = text.strip("[]")
        elif kind == "dropped":
            name, _, reason = text.partition(" : ")
            dropped[name] = reason
        else:
            try:
                entries.append(_read_entry(text, kind))
            except ValueError as error:
                raise ScaError(f"{path.name}, line {number}: {error}") from error
    drawings = [name for entry in entries for name in entry.drawings]
    _refuse_repeats(path, "drawing", [*drawings, *dropped])
    _refuse_repeats(
        path, "name", [n for e in entries for n in {e.label, _plural_of(e) or e.label, *e.synonyms}]
    )
    return tuple(entries), dropped


def _read_entry(text: str, kind: str) -> Entry:
    names, *rest = (part.strip() for part in text.split("|"))
    if len(rest) > 2:
        raise ValueError("expected at most: label = drawings | synonyms | grammar")
    label, is_merge, drawings = (part.strip() for part in names.partition("="))
    fields: dict[str, Any] = {}
    for word in _split(rest[1] if len(rest) > 1 else "", ","):
        if word in ("some", "the", "bare"):
            fields["article"] = "" if word == "bare" else word
        elif word.endswith(" of"):
            fields["measure"] = word
        elif word.startswith("plural="):
            fields["plural"] = word.removeprefix("plural=")
        elif word in ("upright", "uncounted"):
            fields[word] = True
        else:
            raise ValueError(f"{word!r} is no grammar; see the top of the file")
    return Entry(
        label=label,
        kind=kind,
        drawings=tuple(
            name for part in _split(drawings if is_merge else label, ";") for name in _expand(part)
        ),
        synonyms=tuple(_split(rest[0] if rest else "", ",")),
        **fields,
    )


def _split(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _expand(pattern: str) -> list[str]:
    """`{man,woman} running` stands for two names."""
    found = re.search(r"\{(.*?)\}", pattern)
    if not found:
        return [pattern]
    return [
        pattern[: found.start()] + choice + pattern[found.end() :] for choice in found[1].split(",")
    ]


def _refuse_repeats(path: Path, what: str, names: Iterable[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ScaError(f"{path.name} has the same {what} twice: {', '.join(twice)}")


def slug_of(cldr_name: str) -> str:
    """A CLDR name as the icon packages write it: `man’s shoe` is `mans-shoe`."""
    return re.sub(r"[^a-z0-9]+", "-", cldr_name.lower().replace("’", "")).strip("-")


def codepoints(folder: Path) -> dict[str, str]:
    """The code points of every name of the used groups, lower case, as `1f469-200d-1f33e`."""
    archive = fetch_package(EMOJIBASE, folder)
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/en/data.json")
        assert file is not None, "a pinned package has its own files"
        rows = json.load(file)
    return {row["label"]: row["hexcode"].lower() for row in rows if row.get("group") in GROUPS}


def build_table(
    entries: Sequence[Entry],
    dropped: Collection[str],
    codepoint_of: Mapping[str, str],
    folder: Path,
) -> list[dict[str, Any]]:
    """The rows of concepts.json: every entry with its drawings and their colours in each style.

    Raises:
        ScaError: an entry asks for an unknown name, or too few training styles draw it.
    """
    icons = {}
    for name in (name for entry in entries for name in entry.drawings):
        if name not in codepoint_of:
            raise ScaError(f"{WORDS_FILE.name} asks for {name!r}, which emojibase does not name")
        icons[name] = IconName(slug_of(name), codepoint_of[name], {})
    for style in PACKAGES:
        drawn = names_drawn_by(style, icons.values(), folder)
        present = [
            icon
            for name, icon in icons.items()
            if icon.name in drawn and f"{style} {name}" not in dropped
        ]
        for icon, rgba in zip(present, drawings_of(style, present, folder), strict=True):
            icon.colours[style] = colour_word(rgba)
    rows = []
    for entry in entries:
        concept_icons = [icons[name] for name in entry.drawings if icons[name].colours]
        styles = {style for icon in concept_icons for style in icon.colours}
        if len(styles & set(TRAIN_STYLES)) < LEAST_STYLES:
            raise ScaError(f"{entry.label!r} is drawn only in {sorted(styles)}")
        row = _words_of(entry)
        has_one = not {*entry.label.split()}.isdisjoint(COLOUR_WORDS)
        says_colours = not has_one and entry.kind not in WITHOUT_COLOUR
        row["icons"] = [
            {
                "name": icon.name,
                "codepoint": icon.codepoint,
                "colours": {
                    style: word if says_colours else None for style, word in icon.colours.items()
                },
            }
            for icon in concept_icons
        ]
        rows.append(row)
    return rows


def _plural_of(entry: Entry) -> str | None:
    if entry.plural or entry.uncounted or entry.measure or entry.article is not None:
        return entry.plural
    return plural_of(entry.label)


def _words_of(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"label": entry.label, "kind": entry.kind}
    if entry.synonyms:
        row["synonyms"] = entry.synonyms
    if entry.measure:
        row["measure"] = entry.measure
    if entry.article is not None:
        row["article"] = entry.article
    if plural := _plural_of(entry):
        row["plural"] = plural
    if entry.upright:
        row["upright"] = True
    return row


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One concept a line and one drawing a line, so that a change reads well in a diff."""
    lines = []
    for row in rows:
        head = {key: value for key, value in row.items() if key != "icons"}
        icons = ",\n".join(f"    {json.dumps(icon)}" for icon in row["icons"])
        lines.append(f'  {json.dumps(head)[:-1]}, "icons": [\n{icons}\n  ]}}')
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The contents of a rebuilt table: concepts, drawings of each style, names on no line."""

    num_concepts: int
    num_drawings: int
    per_style: dict[str, int]
    unused: tuple[str, ...]


def rebuild_table() -> Rebuilt:
    """Writes `concepts.json` from `concept_words.txt` and the art, which is fetched if need be."""
    folder = default_art_dir()
    folder.mkdir(parents=True, exist_ok=True)
    entries, dropped = read_words()
    codepoint_of = codepoints(folder)
    rows = build_table(entries, dropped, codepoint_of, folder)
    write_table(rows, CONCEPTS_FILE)
    icons = list(itertools.chain.from_iterable(row["icons"] for row in rows))
    unused = set(codepoint_of) - {n for e in entries for n in e.drawings} - set(dropped)
    return Rebuilt(
        num_concepts=len(rows),
        num_drawings=len(icons),
        per_style={style: sum(style in icon["colours"] for icon in icons) for style in PACKAGES},
        unused=tuple(sorted(unused)),
    )
