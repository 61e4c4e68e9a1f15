import pickle
import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("cv2")

from sca_tiny.scenes import art
from sca_tiny.scenes.art import HELD_OUT_STYLES, PACKAGES, TRAIN_STYLES
from sca_tiny.scenes.colours import COLOUR_WORDS, colour_word
from sca_tiny.scenes.concept_table import read_words, slug_of
from sca_tiny.scenes.phrases import caption_subject
from sca_tiny.scenes.words import count_phrase, noun_phrase, read_concepts
from sca_tiny.scoring import names_concept

CONCEPTS = read_concepts()


def test_the_table_has_a_thousand_concepts_drawn_in_three_training_styles():
    assert len(CONCEPTS) >= 1000
    for concept in CONCEPTS:
        styles = {style for icon in concept.icons for style in icon.colours}
        assert styles <= set(PACKAGES)
        assert len(styles & set(TRAIN_STYLES)) >= 3, concept.label


def test_no_style_is_thin():
    counts = Counter(s for c in CONCEPTS for s in {s for i in c.icons for s in i.colours})
    assert min(counts[style] for style in TRAIN_STYLES) >= 950
    assert counts[HELD_OUT_STYLES[0]] >= 650


def test_no_word_names_two_concepts_and_no_drawing_shows_two():
    names = Counter(name for concept in CONCEPTS for name in concept.names)
    icons = Counter(icon.name for concept in CONCEPTS for icon in concept.icons)
    assert [name for name, times in names.items() if times > 1] == []
    assert [name for name, times in icons.items() if times > 1] == []


def test_the_table_is_what_the_written_words_say():
    entries, _ = read_words()
    assert [(e.label, e.kind, e.synonyms, e.measure, e.article, e.upright) for e in entries] == [
        (c.label, c.kind, c.synonyms, c.measure, c.article, c.upright) for c in CONCEPTS
    ]
    for entry, concept in zip(entries, CONCEPTS, strict=True):
        assert {icon.name for icon in concept.icons} == {slug_of(name) for name in entry.drawings}


def test_labels_are_lower_case_and_end_where_a_subject_ends():
    for concept in CONCEPTS:
        for name in concept.names:
            assert re.fullmatch(r"[a-z][a-z0-9 -]*", name), name
            assert caption_subject(f"a {name}") == f"a {name}"
            assert len(name.split()) <= 6


def test_a_phrase_names_its_own_concept_and_no_other():
    by_word = {}
    for concept in CONCEPTS:
        for name in concept.names:
            by_word.setdefault(name.split()[0], set()).add(concept.label)
    concepts = {concept.label: concept for concept in CONCEPTS}
    for concept in CONCEPTS:
        colours = {word for icon in concept.icons for word in icon.colours.values()}
        phrases = {noun_phrase(concept, size="small", colour=colour) for colour in colours}
        phrases |= {noun_phrase(concept), concept.label, count_phrase(concept, 2) or concept.label}
        for phrase in phrases:
            assert names_concept(phrase, concept), phrase
            # Only a concept with a name that starts at some word of the phrase can be in it.
            near = {label for word in phrase.split() for label in by_word.get(word, ())}
            for label in near - {concept.label}:
                assert not names_concept(phrase, concepts[label]), (phrase, label)


def test_colours_are_left_out_where_a_label_has_one_and_where_nobody_would_say_them():
    for concept in CONCEPTS:
        said = {word for icon in concept.icons for word in icon.colours.values()} - {None}
        assert {part for word in said for part in word.split(" and ")} <= set(COLOUR_WORDS)
        if concept.kind == "person" or set(concept.label.split()) & set(COLOUR_WORDS):
            assert not said, concept.label


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((221, 46, 68), "red"),
        ((244, 144, 12), "orange"),
        ((255, 204, 77), "yellow"),
        ((92, 145, 59), "green"),
        ((59, 136, 195), "blue"),
        ((146, 102, 204), "purple"),
        ((244, 171, 186), "pink"),
        ((193, 105, 79), "brown"),
        ((41, 47, 51), "black"),
        ((153, 170, 181), "gray"),
        ((245, 248, 250), "white"),
        ((255, 176, 46), None),  # between orange and yellow
        ((64, 224, 208), None),  # between green and blue
    ],
)
def test_a_drawing_of_one_paint_has_its_colour_word(rgb, word):
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[2:18, 2:18] = [*rgb, 255]
    assert colour_word(rgba) == word


def test_a_drawing_of_two_paints_has_a_word_only_if_one_prevails_or_white_is_half():
    rgba = np.full((20, 20, 4), 255, np.uint8)
    rgba[:10, :, :3] = 221, 46, 68
    assert colour_word(rgba) == "red and white"
    rgba[10:, :, :3] = 92, 145, 59
    assert colour_word(rgba) is None
    rgba[:16, :, :3] = 221, 46, 68
    assert colour_word(rgba) == "red"


@pytest.mark.parametrize(
    ("caption", "label", "named"),
    [
        ("a gray movie camera", "camera", False),
        ("a gray movie camera", "movie camera", True),
        ("a camcorder on the left", "video camera", True),
        ("one of two green apples", "apple", True),
        ("two pairs of red scissors", "scissors", True),
        ("a small yellow grinning cat", "cat", False),
        ("a black cat", "cat", True),
        ("a hot dog", "dog", False),
        ("a hot dog", "hot dog", True),
        ("a bucket of popcorn", "bucket", False),
        ("an apple next to a banana", "banana", False),
        ("a person with a crown", "crown", False),
    ],
)
def test_a_caption_names_the_longest_name_it_has(caption, label, named):
    concept = next(concept for concept in CONCEPTS if concept.label == label)
    assert names_concept(caption, concept) is named


def test_loaded_art_travels_to_another_process_without_its_pixels(tmp_path, monkeypatch):
    dog = next(concept for concept in CONCEPTS if concept.label == "dog")
    monkeypatch.setattr(art, "read_concepts", lambda: (dog,))
    drawn = np.full((len(dog.icons), art.ICON_PX, art.ICON_PX, 4), 255, np.uint8)
    monkeypatch.setattr(art, "drawings_of", lambda style, icons, folder: drawn[: len(icons)])
    loaded = art.load_art(tmp_path, styles=["noto", "twemoji"])

    packed = pickle.dumps(loaded)

    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert again.styles == loaded.styles == ("noto", "twemoji")
    assert [p.name for p in again.pictograms] == [p.name for p in loaded.pictograms]
    np.testing.assert_array_equal(again.pictograms[0].rgba, drawn[0])
