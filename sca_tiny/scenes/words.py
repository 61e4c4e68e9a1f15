"""Concepts that scenes can show, and their words: articles, plurals, counts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

__all__ = [
    "CONCEPTS_FILE", "NUMBERS", "Concept", "IconName", "count_phrase", "indefinite", "noun_phrase",
    "plural_of", "read_concepts",
]  # fmt: skip

CONCEPTS_FILE = Path(__file__).with_name("concepts.json")


@dataclass(frozen=True, slots=True)
class IconName:
    """One drawing of a concept: its name in the SVG packages, and its Unicode code points.

    `colours` has a key for each style that draws it: the colour word that is true of it there, or
    None where no single one is.
    """

    name: str
    codepoint: str
    colours: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Concept:
    """Something a scene can show, and the words for it.

    `label` is the noun that captions use and `synonyms` are accepted in its place. `measure`
    comes before the noun where English needs it: a *pair of* scissors. `article` is None for a
    or an, otherwise `some`, `the` or nothing. `plural` is given where the rules of English do not
    lead to it. `kind` says what sort of thing it is: animal, person, food. An `upright` concept
    is never mirrored. `longer_names` are the names of other concepts that have one of this one's
    names inside: a movie camera is no camera.
    """

    label: str
    synonyms: tuple[str, ...] = ()
    measure: str | None = None
    icons: tuple[IconName, ...] = ()
    kind: str = "object"
    article: str | None = None
    plural: str | None = None
    upright: bool = False
    longer_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every noun that names it: the label, its plural, the synonyms."""
        plural = () if self.plural is None else (self.plural,)
        return tuple(dict.fromkeys((self.label, *plural, *self.synonyms)))


def read_concepts(path: Path = CONCEPTS_FILE) -> tuple[Concept, ...]:
    """The table of concepts, in its own order."""
    concepts = [
        Concept(
            **{**row, "synonyms": tuple(row.get("synonyms", ()))}
            | {"icons": tuple(IconName(**icon) for icon in row["icons"])}
        )
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    owner = {name: concept.label for concept in concepts for name in concept.names}
    for concept in concepts:  # a bucket of popcorn is no bucket
        if concept.measure is not None:
            owner |= dict.fromkeys((concept.measure, plural_of(concept.measure)), concept.label)
    longer: dict[str, list[str]] = {concept.label: [] for concept in concepts}
    for name, label in owner.items():
        words = name.split()
        for start, end in combinations(range(len(words) + 1), 2):
            inner = owner.get(" ".join(words[start:end]), label)
            if inner != label:
                longer[inner].append(name)
    return tuple(replace(c, longer_names=tuple(dict.fromkeys(longer[c.label]))) for c in concepts)


def noun_phrase(concept: Concept, *, size: str | None = None, colour: str | None = None) -> str:
    """`a small pair of red scissors`: article, size, measure, colour, label."""
    words = " ".join(word for word in (size, concept.measure, colour, concept.label) if word)
    if concept.article is not None:
        return f"{concept.article} {words}".strip()
    return f"{indefinite(words)} {words}"


def count_phrase(concept: Concept, number: int, *, colour: str | None = None) -> str | None:
    """`two red apples`, `three slices of pizza`; None for what is not counted."""
    if concept.measure is not None:
        noun = " ".join(w for w in (plural_of(concept.measure), colour, concept.label) if w)
    elif concept.plural is not None:
        noun = " ".join(word for word in (colour, concept.plural) if word)
    else:
        return None
    return f"{NUMBERS[number]} {noun}"


NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_SOUNDS_LIKE_A_CONSONANT = re.compile(r"(?:uni|eu|one\b|u-|ufo|ukulele)")
_SOUNDS_LIKE_A_VOWEL = re.compile(r"(?:hour|x-|honest)")


def indefinite(words: str) -> str:
    """`a` or `an`, by the sound of what follows: an hourglass, a unicorn, an x-ray."""
    if _SOUNDS_LIKE_A_VOWEL.match(words):
        return "an"
    return "an" if words[0] in "aeiou" and not _SOUNDS_LIKE_A_CONSONANT.match(words) else "a"


_IRREGULAR = {
    "child": "children", "foot": "feet", "goose": "geese", "leaf": "leaves", "loaf": "loaves",
    "man": "men", "mouse": "mice", "ox": "oxen", "person": "people", "scarf": "scarves",
    "tooth": "teeth", "wolf": "wolves", "woman": "women", "cactus": "cacti", "knife": "knives",
    "elf": "elves", "life": "lives", "tomato": "tomatoes", "potato": "potatoes",
    "mango": "mangoes", "mosquito": "mosquitoes", "volcano": "volcanoes", "hero": "heroes",
    "superhero": "superheroes", "domino": "dominoes", "fireman": "firemen", "snowman": "snowmen",
    "sheep": "sheep", "fish": "fish", "deer": "deer", "bison": "bison", "moose": "moose",
    "shrimp": "shrimp", "squid": "squid", "sushi": "sushi", "aircraft": "aircraft",
    "jellyfish": "jellyfish", "pufferfish": "pufferfish", "t-rex": "t-rexes", "box": "boxes",
}  # fmt: skip
_BEFORE_REST = re.compile(
    r" (?:with|without|of|in|on|over|covering|holding|getting|taking|doing|touching|tipping"
    r"|raising|bouncing|feeding|meditating|walking|running|standing|kneeling|frowning|pouting"
    r"|bowing|facepalming|shrugging|licking|blowing|rolling|pointing|from|and)\b"
)


def plural_of(noun: str) -> str:
    """More than one of a noun: `boxes`, `people walking`, `cups with straw`."""
    rest = _BEFORE_REST.search(noun)
    head, tail = (noun[: rest.start()], noun[rest.start() :]) if rest else (noun, "")
    first, _, last = head.rpartition(" ")
    if last in _IRREGULAR:
        plural = _IRREGULAR[last]
    elif re.search(r"(?:s|x|z|ch|sh)$", last):
        plural = f"{last}es"
    elif re.search(r"[^aeiou]y$", last):
        plural = f"{last[:-1]}ies"
    else:
        plural = f"{last}s"
    return f"{first} {plural}{tail}".strip()
