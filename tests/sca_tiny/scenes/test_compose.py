import re

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")
coco_mask = pytest.importorskip("pycocotools.mask")

from sca_batch.errors import ScaError  # noqa: E402
from sca_tiny.scenes.art import (  # noqa: E402
    HELD_OUT_STYLES,
    PACKAGES,
    TRAIN_STYLES,
    Art,
    Pictogram,
    fetch_package,
)
from sca_tiny.scenes.compose import (  # noqa: E402
    HELD_OUT_FIRST_SEED,
    MIN_VISIBLE_PX,
    Scene,
    compose_scene,
    visible_masks,
)
from sca_tiny.scenes.phrases import Arrangement, caption_subject  # noqa: E402
from sca_tiny.scenes.words import Concept, count_phrase, noun_phrase, plural_of  # noqa: E402

SHAPES = {
    "disc": (None, "red", (225, 30, 30)),
    "plank": (None, "green", (30, 200, 30)),
    "tongs": ("pair of", "blue", (30, 40, 225)),
    "arch": (None, None, (30, 40, 225)),
}
PLURALS = {"disc": "discs", "plank": "planks", "arch": "arches"}
CHANNEL = {"disc": 0, "plank": 1, "tongs": 2, "arch": 2}
NUM_SCENES = 60


def draw(label: str) -> np.ndarray:
    alpha = np.zeros((128, 128), np.uint8)
    if label == "disc":
        cv2.circle(alpha, (64, 64), 60, 255, -1)
    elif label == "plank":
        alpha[40:90] = 255
    elif label == "tongs":
        cv2.line(alpha, (10, 10), (118, 118), 255, 30)
        cv2.line(alpha, (118, 10), (10, 118), 255, 30)
    else:
        cv2.ellipse(alpha, (64, 100), (50, 80), 0, 180, 360, 255, 26)
    rgba = np.empty((128, 128, 4), np.uint8)
    rgba[..., :3] = SHAPES[label][2]
    rgba[..., 3] = alpha
    return rgba


@pytest.fixture(scope="module")
def art() -> Art:
    return Art(
        concepts=tuple(
            Concept(label, measure=row[0], plural=None if row[0] else PLURALS[label])
            for label, row in SHAPES.items()
        ),
        pictograms=tuple(
            Pictogram(label, style, label, row[1], draw(label))
            for label, row in SHAPES.items()
            for style in (TRAIN_STYLES[0], HELD_OUT_STYLES[0])
        ),
    )


@pytest.fixture(scope="module")
def scenes(art: Art) -> list[Scene]:
    return [compose_scene(seed, art) for seed in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def dense_scenes(art: Art) -> list[Scene]:
    return [compose_scene(seed, art, layout="dense") for seed in range(25)]


def names(phrase: str, label: str) -> bool:
    return re.search(rf"\b(?:{label}|{PLURALS.get(label, label)})\b", phrase) is not None


def test_a_seed_means_the_same_scene_on_every_call(art):
    for seed in (0, 7, 123_456_789):
        once, again = compose_scene(seed, art), compose_scene(seed, art)
        np.testing.assert_array_equal(once.image, again.image)
        np.testing.assert_array_equal(once.masks, again.masks)
        assert (once.concepts, once.captions) == (again.concepts, again.captions)
    assert not np.array_equal(compose_scene(0, art).image, compose_scene(1, art).image)


def test_a_scene_has_the_promised_shapes_and_three_to_eight_objects(scenes):
    for scene in scenes:
        num_objects = len(scene.concepts)
        assert 3 <= num_objects <= 8
        assert (scene.image.shape, scene.image.dtype) == ((256, 256, 3), np.uint8)
        assert (scene.masks.shape, scene.masks.dtype) == ((num_objects, 256, 256), np.bool_)
        assert (scene.boxes_xyxy.shape, scene.boxes_xyxy.dtype) == ((num_objects, 4), np.float32)
        assert len(scene.captions) == num_objects


def test_another_canvas_size_gives_a_scene_of_that_size(art):
    scene = compose_scene(3, art, size_px=96)
    assert scene.image.shape == (96, 96, 3)
    assert scene.masks.shape[1:] == (96, 96)


def test_masks_are_disjoint(scenes):
    for scene in scenes:
        assert scene.masks.sum(axis=0).max() == 1


def test_boxes_are_the_frames_that_pycocotools_finds(scenes):
    for scene in scenes:
        for mask, (x0, y0, x1, y1) in zip(scene.masks, scene.boxes_xyxy, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert coco_mask.toBbox(rle).tolist() == [x0, y0, x1 - x0, y1 - y0]


def test_a_mask_is_its_silhouette_less_everything_above_it(scenes):
    for scene in scenes:
        for i, mask in enumerate(scene.masks):
            above = scene.full_masks[i + 1 :].any(axis=0)
            np.testing.assert_array_equal(mask, scene.full_masks[i] & ~above)


def test_two_fifths_of_every_object_can_be_seen(scenes):
    for scene in scenes:
        seen = scene.masks.sum(axis=(1, 2)) / scene.full_masks.sum(axis=(1, 2))
        assert seen.min() >= 0.4


def test_the_pixels_under_a_mask_are_those_of_its_object(scenes):
    for scene in scenes:
        for concept, mask in zip(scene.concepts, scene.masks, strict=True):
            inner = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            if inner.sum() >= 20:
                strongest = scene.image[inner].argmax(axis=1)
                assert (strongest == CHANNEL[concept]).mean() > 0.97


def test_visible_masks_of_a_stack_drawn_by_hand():
    full_masks = np.zeros((3, 1, 6), bool)
    full_masks[0, 0, 0:4] = True
    full_masks[1, 0, 2:6] = True
    full_masks[2, 0, 3] = True
    visible = visible_masks(full_masks).astype(int)[:, 0].tolist()
    assert visible == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0]]


def test_the_first_caption_is_the_plain_noun_with_its_colour(scenes):
    expected = {
        "disc": "a red disc",
        "plank": "a green plank",
        "tongs": "a pair of blue tongs",
        "arch": "an arch",
    }
    for scene in scenes:
        for concept, captions in zip(scene.concepts, scene.captions, strict=True):
            assert captions[0] == expected[concept]


def test_captions_are_short_lower_case_different_and_about_their_object(scenes):
    for scene in scenes:
        for concept, captions in zip(scene.concepts, scene.captions, strict=True):
            assert len(set(captions)) == len(captions) >= 2
            for caption in captions:
                assert len(caption.split()) <= 14
                assert caption == caption.lower()
                assert names(caption_subject(caption), concept)
                others = set(SHAPES) - {concept}
                assert not any(names(caption_subject(caption), other) for other in others)


def test_colour_words_are_those_of_the_drawing(scenes):
    for scene in scenes:
        for concept, captions in zip(scene.concepts, scene.captions, strict=True):
            colour = SHAPES[concept][1]
            for caption in captions:
                said = set(caption_subject(caption).split()) & {"red", "green", "blue"}
                assert said <= {colour}


def test_size_words_agree_with_the_visible_area(scenes):
    said_of = {"small": [], "little": [], "tiny": [], "large": [], "big": []}
    for scene in scenes:
        for mask, captions in zip(scene.masks, scene.captions, strict=True):
            for word in {word for c in captions for word in caption_subject(c).split()}:
                if word in said_of:
                    said_of[word].append(mask.mean())
    assert max(said_of["small"] + said_of["little"]) < 0.02
    assert max(said_of["tiny"]) < 0.008
    assert min(said_of["large"] + said_of["big"]) > 0.08


def test_position_words_agree_with_the_middle_of_the_box(scenes, dense_scenes):
    bands = {"left": (0, 0), "right": (0, 2), "top": (1, 0), "bottom": (1, 2)}
    seen = set()
    for scene in [*scenes, *dense_scenes]:
        for box, captions in zip(scene.boxes_xyxy, scene.captions, strict=True):
            thirds = np.minimum((box[:2] + box[2:]) / 2 / 256 * 3, 2).astype(int)
            for caption in captions:
                rest = caption[len(caption_subject(caption)) :]
                words = set() if "to the" in rest else set(rest.split())
                for word in words & set(bands):
                    axis, third = bands[word]
                    assert thirds[axis] == third, caption
                    seen.add(word)
                if words & {"center", "middle"}:
                    assert thirds.tolist() == [1, 1], caption
                    seen.add("center")
    assert seen == {"left", "right", "top", "bottom", "center"}


def holds(scene: Scene, wording: str, i: int, j: int) -> bool:
    """Whether a relation is true of two objects, judged from masks without the composer's code."""
    a, b = scene.masks[i], scene.masks[j]
    a_full, b_full = scene.full_masks[i], scene.full_masks[j]
    if wording in ("in front of", "overlapping"):
        return bool(i > j and (a & b_full).any())
    if wording.startswith(("behind", "partly")):
        return bool(i < j and (b & a_full).any())
    if (a_full & b_full).any():
        return False
    (ay, ax), (by, bx) = np.nonzero(a), np.nonzero(b)
    if wording == "above":
        return bool(ay.max() < by.min())
    if wording in ("below", "under", "beneath"):
        return bool(ay.min() > by.max())
    reach = cv2.dilate(a.astype(np.uint8), np.ones((129, 129), np.uint8)) > 0
    left, right = ax.max() < bx.min(), bx.max() < ax.min()
    if wording == "to the left of":
        right = False
    elif wording == "to the right of":
        left = False
    return bool((reach & b).any() and (left or right))


def test_relations_hold_between_the_object_and_all_that_are_named(scenes):
    pattern = re.compile(
        r" (partly (?:hidden|covered) (?:behind|by)|in front of|overlapping|behind|next to|beside"
        r"|close to|to the left of|to the right of|above|below|under|beneath) (.+)"
    )
    seen, counted = set(), 0
    for scene in scenes:
        for i, captions in enumerate(scene.captions):
            for caption in captions:
                if match := pattern.search(caption):
                    wording, other = match.groups()
                    seen.add(wording)
                    so = [
                        holds(scene, wording, i, j)
                        for j, concept in enumerate(scene.concepts)
                        if j != i and names(other, concept)
                    ]
                    if other.split()[0] in ("two", "three"):
                        counted += 1
                        assert len(so) == {"two": 2, "three": 3}[other.split()[0]], caption
                        assert all(so), caption
                    else:
                        assert any(so), caption
    assert counted
    assert seen >= {"in front of", "behind", "next to", "to the left of", "to the right of"}
    assert seen >= {"above", "below", "partly hidden by", "overlapping"}


def test_one_of_several_counts_what_the_picture_shows(scenes):
    seen = 0
    for scene in scenes:
        for concept, captions in zip(scene.concepts, scene.captions, strict=True):
            for caption in captions:
                if match := re.match(r"one of (two|three|four|five) ", caption):
                    seen += 1
                    number = ["two", "three", "four", "five"].index(match[1]) + 2
                    assert scene.concepts.count(concept) == number, caption
    assert seen


def test_relation_and_position_of_boxes_drawn_by_hand():
    full_masks = np.zeros((4, 90, 90), bool)
    full_masks[0, 10:30, 10:30] = True
    full_masks[1, 20:40, 20:40] = True  # over a corner of the first
    full_masks[2, 20:40, 42:60] = True  # to the right of the second
    full_masks[3, 70:85, 10:30] = True  # far below the first
    drawn = Arrangement(visible_masks(full_masks), full_masks)
    assert drawn.relation_word(0, 1) == "behind"
    assert drawn.relation_word(1, 0) == "in front of"
    assert drawn.relation_word(1, 2) == "left of"
    assert drawn.relation_word(2, 1) == "right of"
    assert drawn.relation_word(0, 3) is None
    assert [drawn.position_word(i) for i in range(4)] == [
        "top left",
        "center",
        "center",
        "bottom left",
    ]


def test_a_dense_scene_has_many_small_objects_that_can_all_be_seen(dense_scenes):
    numbers = [len(scene.concepts) for scene in dense_scenes]
    assert np.mean(numbers) > 12
    assert max(numbers) <= 20
    for scene in dense_scenes:
        sides = (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]).max(axis=1)
        assert sides.max() <= 72 + 25
        assert scene.masks.sum(axis=(1, 2)).min() >= MIN_VISIBLE_PX
        seen = scene.masks.sum(axis=(1, 2)) / scene.full_masks.sum(axis=(1, 2))
        assert seen.min() >= 0.4
        assert seen.mean() > 0.9
        np.testing.assert_array_equal(scene.masks, visible_masks(scene.full_masks))
        assert all(len(captions) >= 2 for captions in scene.captions)


def test_an_unknown_layout_is_refused(art):
    with pytest.raises(ValueError, match="neither 'natural' nor 'dense'"):
        compose_scene(0, art, layout="sparse")


def test_a_style_that_lacks_a_concept_never_shows_it():
    some = Art(
        concepts=(Concept("disc"), Concept("plank")),
        pictograms=tuple(
            Pictogram(label, style, label, None, draw(label))
            for label, style in (
                ("disc", TRAIN_STYLES[0]),
                ("plank", TRAIN_STYLES[0]),
                ("plank", TRAIN_STYLES[1]),
            )
        ),
    )
    shown = {
        pair
        for seed in range(12)
        for pair in zip(*(lambda s: (s.concepts, s.styles))(compose_scene(seed, some)), strict=True)
    }
    assert shown == {(p.label, p.style) for p in some.pictograms}


def test_phrases_put_article_measure_and_colour_where_english_does():
    assert noun_phrase(Concept("umbrella")) == "an umbrella"
    assert noun_phrase(Concept("apple"), colour="green") == "a green apple"
    assert noun_phrase(Concept("fog", article="some"), size="small") == "some small fog"
    assert noun_phrase(Concept("statue of liberty", article="the")) == "the statue of liberty"
    assert noun_phrase(Concept("santa claus", article="")) == "santa claus"
    assert noun_phrase(Concept("scissors", measure="pair of"), size="small", colour="red") == (
        "a small pair of red scissors"
    )


@pytest.mark.parametrize(
    ("label", "article"),
    [("owl", "an"), ("hourglass", "an"), ("unicorn", "a"), ("x-ray", "an"), ("ufo", "a")],
)
def test_an_article_follows_the_sound(label, article):
    assert noun_phrase(Concept(label)) == f"{article} {label}"
    assert noun_phrase(Concept(label), size="small") == f"a small {label}"


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("box", "boxes"),
        ("baby", "babies"),
        ("monkey", "monkeys"),
        ("kitchen knife", "kitchen knives"),
        ("person with crown", "people with crown"),
        ("cup of coffee", "cups of coffee"),
        ("loaf of", "loaves of"),
        ("sheep", "sheep"),
    ],
)
def test_a_plural_is_that_of_the_head_noun(noun, plural):
    assert plural_of(noun) == plural


def test_what_is_counted_comes_in_the_plural_with_its_measure():
    assert count_phrase(Concept("apple", plural="apples"), 2, colour="red") == "two red apples"
    assert count_phrase(Concept("pizza", measure="slice of"), 3) == "three slices of pizza"
    assert count_phrase(Concept("fog", article="some"), 2) is None


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("a dog", "a dog"),
        ("a dog next to a banana", "a dog"),
        ("a small bird partly hidden behind a red bus", "a small bird"),
        ("one of two apples to the left of a dog", "one of two apples"),
        ("a person with arms over head overlapping a bus", "a person with arms over head"),
        ("a slice of pizza in the top left corner", "a slice of pizza"),
    ],
)
def test_the_subject_of_a_caption_leaves_out_what_is_near(caption, subject):
    assert caption_subject(caption) == subject


def test_seeds_of_the_two_splits_never_meet(art):
    assert HELD_OUT_FIRST_SEED == 10**9
    assert compose_scene(HELD_OUT_FIRST_SEED - 1, art).seed == HELD_OUT_FIRST_SEED - 1
    with pytest.raises(ValueError, match="not a train seed"):
        compose_scene(HELD_OUT_FIRST_SEED, art, split="train")
    with pytest.raises(ValueError, match="not a held-out seed"):
        compose_scene(HELD_OUT_FIRST_SEED - 1, art, split="held-out")


def test_held_out_styles_show_up_only_in_held_out_scenes(art, scenes):
    assert {style for scene in scenes for style in scene.styles} == {TRAIN_STYLES[0]}
    held_out = compose_scene(HELD_OUT_FIRST_SEED, art, split="held-out")
    assert set(held_out.styles) == set(HELD_OUT_STYLES)
    known = compose_scene(HELD_OUT_FIRST_SEED, art, split="held-out", style=TRAIN_STYLES[0])
    assert set(known.styles) == {TRAIN_STYLES[0]}
    with pytest.raises(ValueError, match="held out"):
        compose_scene(0, art, style=HELD_OUT_STYLES[0])


def test_without_npm_the_message_says_what_to_install_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScaError, match="npm is not installed") as raised:
        fetch_package(PACKAGES["noto"], tmp_path)
    assert "iconify-json-noto-1.2.9.tgz" in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    archive = tmp_path / PACKAGES["noto"].file_name
    archive.touch()
    assert fetch_package(PACKAGES["noto"], tmp_path) == archive
