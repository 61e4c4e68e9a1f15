"""Captions of composed scenes: short phrases a person would write, true of the scene."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sca_batch.train.art import Concept

__all__ = [
    "MAX_CAPTION_WORDS",
    "Mask",
    "box_of",
    "caption_subject",
    "noun_phrase",
    "position_word",
    "relation_word",
    "size_word",
    "write_captions",
]

Mask = NDArray[np.bool_]

# What the words mean. Sizes are fractions of the canvas that the visible mask covers.
SMALL_BELOW = 0.02
LARGE_ABOVE = 0.08
COVERED_FROM = 0.06  # of the object's full silhouette, before one calls it "behind"
NEAR_WITHIN = 0.06  # of the canvas width, between two boxes
MAX_CAPTION_WORDS = 12

_AFTER_SUBJECT = re.compile(
    r" (?:partly hidden behind|in front of|behind|next to|beside|above|below|under"
    r"|on the|in the|at the|near the)\b"
)


def box_of(mask: Mask) -> NDArray[np.float32]:
    """The tightest box around a mask that is not empty, x1 and y1 exclusive."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def size_word(mask: Mask) -> str | None:
    """`small` or `large` by the share of the canvas a visible mask covers, None between."""
    share = np.count_nonzero(mask) / mask.size
    return "small" if share < SMALL_BELOW else "large" if share > LARGE_ABOVE else None


def position_word(mask: Mask) -> str:
    """Which ninth of the canvas holds the middle of the mask's box: `top left` to `center`."""
    x0, y0, x1, y1 = box_of(mask)
    height, width = mask.shape
    column = min(int((x0 + x1) / 2 / width * 3), 2)
    row = min(int((y0 + y1) / 2 / height * 3), 2)
    words = [["top", "", "bottom"][row], ["left", "", "right"][column]]
    return " ".join(word for word in words if word) or "center"


def relation_word(
    subject: int, other: int, masks: NDArray[np.bool_], full_masks: NDArray[np.bool_]
) -> str | None:
    """How one object lies to another: `in front of`, `behind`, `next to`, `above`, `below`.

    `in front of` and `behind` need one to hide a visible share of the other; the rest need two
    that are close, level or in line, and do not touch each other's silhouette.
    """
    lower, upper = min(subject, other), max(subject, other)
    hidden = np.count_nonzero(full_masks[lower] & masks[upper])
    if hidden:
        if hidden < COVERED_FROM * np.count_nonzero(full_masks[lower]):
            return None
        return "in front of" if subject == upper else "behind"
    if (full_masks[lower] & full_masks[upper]).any():
        return None
    ax0, ay0, ax1, ay1 = box_of(masks[subject])
    bx0, by0, bx1, by1 = box_of(masks[other])
    near_px = NEAR_WITHIN * masks.shape[2]
    shared_x = (min(ax1, bx1) - max(ax0, bx0)) / min(ax1 - ax0, bx1 - bx0)
    shared_y = (min(ay1, by1) - max(ay0, by0)) / min(ay1 - ay0, by1 - by0)
    if shared_y > 0.5 and 0 <= max(ax0, bx0) - min(ax1, bx1) <= near_px:
        return "next to"
    if shared_x > 0.5 and 0 <= by0 - ay1 <= near_px:
        return "above"
    if shared_x > 0.5 and 0 <= ay0 - by1 <= near_px:
        return "below"
    return None


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


def noun_phrase(concept: Concept, *, size: str | None = None, colour: str | None = None) -> str:
    """`a small pair of red scissors`: article, size, measure, colour, label."""
    words = " ".join(word for word in (size, concept.measure, colour, concept.label) if word)
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption_subject(caption: str) -> str:
    """The part of a caption that names its own object, without where it is or what is near it.

    Scoring by the words of a concept needs this: `a dog next to a banana` is no banana.
    """
    return _AFTER_SUBJECT.split(caption, maxsplit=1)[0]


def write_captions(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    colours: Sequence[str | None],
    masks: NDArray[np.bool_],
    full_masks: NDArray[np.bool_],
) -> tuple[tuple[str, ...], ...]:
    sizes = [size_word(mask) for mask in masks]
    written = []
    for i, concept in enumerate(concepts):
        simple = noun_phrase(concept, colour=colours[i])
        sized = noun_phrase(concept, size=sizes[i], colour=colours[i])
        subjects = [simple, sized, noun_phrase(concept, size=sizes[i]), noun_phrase(concept)]
        phrases = [sized, noun_phrase(concept)]
        position = position_word(masks[i])
        for _ in range(2):
            phrases.append(f"{_any_of(rng, subjects)} {_any_of(rng, _positions(position))}")
        related = [(j, relation_word(i, j, masks, full_masks)) for j in range(len(concepts))]
        relations = [(j, word) for j, word in related if j != i and word is not None]
        for j, word in (relations[k] for k in rng.permutation(len(relations))[:2]):
            other = noun_phrase(
                concepts[j],
                size=sizes[j] if rng.random() < 0.25 else None,
                colour=colours[j] if rng.random() < 0.5 else None,
            )
            if concepts[j] is concept:
                other = f"another {noun_phrase(concept).split(' ', 1)[1]}"
            phrases.append(
                f"{_any_of(rng, subjects)} {_any_of(rng, _RELATION_WORDINGS[word])} {other}"
            )
        others = [
            phrases[k]
            for k in rng.permutation(len(phrases))
            if len(phrases[k].split()) <= MAX_CAPTION_WORDS
        ]
        written.append(tuple(dict.fromkeys([simple, *others])))
    return tuple(written)


_RELATION_WORDINGS = {
    "in front of": ("in front of",),
    "behind": ("behind", "behind", "partly hidden behind"),
    "next to": ("next to", "next to", "beside"),
    "above": ("above",),
    "below": ("below", "under"),
}


def _positions(position: str) -> tuple[str, ...]:
    if position == "center":
        return ("in the center", "in the middle")
    if " " in position:
        return (f"in the {position}", f"in the {position} corner")
    if position in ("left", "right"):
        return (f"on the {position}", f"on the {position} side")
    return (f"at the {position}", f"near the {position}")


def _any_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
