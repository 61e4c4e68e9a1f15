from collections import Counter

import pytest

pytest.importorskip("cv2")

from sca_batch.train.art import HELD_OUT_STYLES, PACKAGES, TRAIN_STYLES, read_concepts
from sca_batch.train.concept_table import read_words

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
    assert [(e.label, e.kind, e.synonyms, e.measure) for e in entries] == [
        (c.label, c.kind, c.synonyms, c.measure) for c in CONCEPTS
    ]
