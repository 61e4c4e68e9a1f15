"""Captions of composed scenes: short phrases a person would write, true of the scene."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sca_tiny.scenes.words import NUMBERS, Concept, count_phrase, noun_phrase

__all__ = [
    "MAX_CAPTION_WORDS", "Arrangement", "Mask", "box_of", "caption_subject", "write_captions",
    "write_plain_captions",
]  # fmt: skip

Mask = NDArray[np.bool_]

# What the words mean. Sizes are fractions of the canvas that the visible mask covers.
TINY_BELOW = 0.008
SMALL_BELOW = 0.02
LARGE_ABOVE = 0.08
COVERED_FROM = 0.06  # of the object's full silhouette, before one calls it "behind"
NEAR_WITHIN = 0.06  # of the canvas width, between two boxes
MAX_CAPTION_WORDS = 14

_AFTER_SUBJECT = re.compile(
    r" (?:partly (?:hidden|covered) (?:behind|by)|in front of|overlapping|behind|next to|beside"
    r"|close to|to the (?:left|right) of|above|below|under|beneath"
    r"|on the|in the|at the|near the)\b"
)


def box_of(mask: Mask) -> NDArray[np.float32]:
    """The tightest box around a mask that is not empty, x1 and y1 exclusive."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return np.array([left, top, left + width, top + height], np.float32)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The layout of N objects, from back to front, and the words that are true of it.

    `masks` (N, H, W) hold what can be seen of each object, `full_masks` all of its silhouette.
    """

    masks: NDArray[np.bool_]
    full_masks: NDArray[np.bool_]

    @cached_property
    def boxes_xyxy(self) -> NDArray[np.float32]:
        """The frames of what can be seen, float32 (N, 4), x1 and y1 exclusive."""
        return np.stack([box_of(mask) for mask in self.masks])

    @cached_property
    def _frames(self) -> list[list[int]]:
        return [box_of(mask).astype(int).tolist() for mask in self.full_masks]

    @cached_property
    def _boxes(self) -> list[list[float]]:
        return [[float(side) for side in box] for box in self.boxes_xyxy]

    @cached_property
    def _shares(self) -> list[float]:
        height, width = self.masks.shape[1:]
        return [np.count_nonzero(mask) / (height * width) for mask in self.masks]

    def size_words(self, i: int) -> tuple[str, ...]:
        """Words for the share of the canvas that can be seen of an object; none between."""
        share = self._shares[i]
        if share > LARGE_ABOVE:
            return ("large", "big")
        if share < TINY_BELOW:
            return ("small", "tiny", "little")
        return ("small", "little") if share < SMALL_BELOW else ()

    def position_word(self, i: int) -> str:
        """The ninth of the canvas that holds the middle of the box: `top left` to `center`."""
        x0, y0, x1, y1 = self._boxes[i]
        height, width = self.masks.shape[1:]
        column = min(int((x0 + x1) / 2 / width * 3), 2)
        row = min(int((y0 + y1) / 2 / height * 3), 2)
        words = [["top", "", "bottom"][row], ["left", "", "right"][column]]
        return " ".join(word for word in words if word) or "center"

    def relation_word(self, subject: int, other: int) -> str | None:
        """The relation of one object to another: `in front of`, `behind`, `left of`, `above`, ...

        `in front of` and `behind` need one to hide a visible share of the other; `left of`,
        `right of`, `above` and `below` need two that are close, level or in line, and do not
        touch each other's silhouette.
        """
        lower, upper = min(subject, other), max(subject, other)
        shared = self._meeting(lower, upper)
        if shared is not None:
            hidden = np.count_nonzero(self.full_masks[lower][shared] & self.masks[upper][shared])
            if hidden:
                if hidden < COVERED_FROM * np.count_nonzero(self.full_masks[lower]):
                    return None
                return "in front of" if subject == upper else "behind"
            if (self.full_masks[lower][shared] & self.full_masks[upper][shared]).any():
                return None
        ax0, ay0, ax1, ay1 = self._boxes[subject]
        bx0, by0, bx1, by1 = self._boxes[other]
        near_px = NEAR_WITHIN * self.masks.shape[2]
        shared_x = (min(ax1, bx1) - max(ax0, bx0)) / min(ax1 - ax0, bx1 - bx0)
        shared_y = (min(ay1, by1) - max(ay0, by0)) / min(ay1 - ay0, by1 - by0)
        if shared_y > 0.5 and 0 <= bx0 - ax1 <= near_px:
            return "left of"
        if shared_y > 0.5 and 0 <= ax0 - bx1 <= near_px:
            return "right of"
        if shared_x > 0.5 and 0 <= by0 - ay1 <= near_px:
            return "above"
        if shared_x > 0.5 and 0 <= ay0 - by1 <= near_px:
            return "below"
        return None

    def _meeting(self, i: int, j: int) -> tuple[slice, slice] | None:
        """Rows and columns that the frames of two whole silhouettes share."""
        ax0, ay0, ax1, ay1 = self._frames[i]
        bx0, by0, bx1, by1 = self._frames[j]
        rows, columns = slice(max(ay0, by0), min(ay1, by1)), slice(max(ax0, bx0), min(ax1, bx1))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return rows, columns


def caption_subject(caption: str) -> str:
    """The part of a caption that names its own object, without where it is or what is near it.

    Scoring by the words of a concept needs this: `a dog next to a banana` is no banana.
    """
    return _AFTER_SUBJECT.split(caption, maxsplit=1)[0]


def write_plain_captions(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    colours: Sequence[str | None],
    arrangement: Arrangement,
) -> tuple[tuple[str, ...], ...]:
    """For every object its noun with what it looks like, and one phrase with where it is."""
    written = []
    for i, concept in enumerate(concepts):
        simple, *others = _subjects(rng, concept, colours[i], arrangement.size_words(i))
        position = _any_of(rng, _POSITIONS[arrangement.position_word(i)])
        placed = f"{_any_of(rng, [simple, *others])} {position}"
        written.append(tuple(dict.fromkeys([simple, *others, placed])))
    return tuple(written)


def write_captions(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    colours: Sequence[str | None],
    arrangement: Arrangement,
) -> tuple[tuple[str, ...], ...]:
    """For every object some phrases of at most `MAX_CAPTION_WORDS`, the first one the simplest."""
    times = Counter(concept.label for concept in concepts)
    written = []
    for i, concept in enumerate(concepts):
        simple, *others = _subjects(rng, concept, colours[i], arrangement.size_words(i))
        subjects = [simple, simple, *others]
        alike = [k for k, other in enumerate(concepts) if other is concept]
        if group := _count(rng, concept, [colours[k] for k in alike], times[concept.label]):
            others.append(f"one of {group}")
            subjects.append(f"one of {group}")
        phrases = list(others)
        position = arrangement.position_word(i)
        for _ in range(2):
            phrases.append(f"{_any_of(rng, subjects)} {_any_of(rng, _POSITIONS[position])}")
        for relation, other in _relations(rng, i, concepts, colours, arrangement):
            subject = simple if other.startswith("another ") else _any_of(rng, subjects)
            phrases.append(f"{subject} {_any_of(rng, _RELATIONS[relation])} {other}")
        kept = [
            phrases[k]
            for k in rng.permutation(len(phrases))
            if len(phrases[k].split()) <= MAX_CAPTION_WORDS
        ]
        written.append(tuple(dict.fromkeys([simple, *kept])))
    return tuple(written)


def _subjects(
    rng: np.random.Generator, concept: Concept, colour: str | None, sizes: Sequence[str]
) -> list[str]:
    """Ways to name an object by its looks: first with its colour, last without any of them."""
    size = _any_of(rng, sizes) if sizes else None
    phrases = [
        noun_phrase(concept, colour=colour),
        noun_phrase(concept, size=size, colour=colour),
        noun_phrase(concept, size=size),
        noun_phrase(concept),
    ]
    return list(dict.fromkeys(phrases))


def _count(
    rng: np.random.Generator, concept: Concept, colours: Sequence[str | None], number: int
) -> str | None:
    """`two red apples` where there are two or more; their colour only if they share one."""
    if number < 2 or number not in NUMBERS:
        return None
    shared = colours[0] if len(set(colours)) == 1 and rng.random() < 0.6 else None
    return count_phrase(concept, number, colour=shared)


def _relations(
    rng: np.random.Generator,
    subject: int,
    concepts: Sequence[Concept],
    colours: Sequence[str | None],
    arrangement: Arrangement,
) -> list[tuple[str, str]]:
    """At most two relations of an object, with a phrase for what it is related to."""
    found = {}
    for j in range(len(concepts)):
        word = arrangement.relation_word(subject, j) if j != subject else None
        if word is not None:
            found[j] = word
    chosen: list[tuple[str, str]] = []
    for j in rng.permutation(list(found))[:2].tolist():
        alike = [k for k, concept in enumerate(concepts) if concept is concepts[j]]
        all_so = subject not in alike and {found.get(k) for k in alike} == {found[j]}
        group = _count(rng, concepts[j], [colours[k] for k in alike], len(alike))
        if all_so and group:
            chosen.append((found[j], group))
        elif subject in alike:
            # No article, size or colour, which the two might not share.
            noun = " ".join(w for w in (concepts[j].measure, concepts[j].label) if w)
            if concepts[j].article is None:
                chosen.append((found[j], f"another {noun}"))
        else:
            sizes = arrangement.size_words(j)
            size = _any_of(rng, sizes) if sizes and rng.random() < 0.25 else None
            colour = colours[j] if rng.random() < 0.5 else None
            chosen.append((found[j], noun_phrase(concepts[j], size=size, colour=colour)))
    return list(dict.fromkeys(chosen))


_RELATIONS = {
    "in front of": ("in front of", "in front of", "overlapping"),
    "behind": ("behind", "behind", "partly hidden behind", "partly hidden by", "partly covered by"),
    "left of": ("next to", "beside", "close to", "to the left of"),
    "right of": ("next to", "beside", "close to", "to the right of"),
    "above": ("above",),
    "below": ("below", "under", "beneath"),
}
_POSITIONS = {
    "center": ("in the center", "in the middle", "in the middle of the picture"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    **{
        f"{row} {side}": (
            f"in the {row} {side}",
            f"in the {row} {side} corner",
            f"at the {row} {side}",
        )
        for row in ("top", "bottom")
        for side in ("left", "right")
    },
}


def _any_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
