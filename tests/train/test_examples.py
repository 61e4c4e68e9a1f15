import dataclasses

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")

from sca_batch.images import preprocess  # noqa: E402
from sca_batch.model.config import TASKS  # noqa: E402
from sca_batch.model.tokenizer import read_tokenizer  # noqa: E402
from sca_batch.train.art import TRAIN_STYLES, Art, Concept, Pictogram  # noqa: E402
from sca_batch.train.examples import (  # noqa: E402
    BACKGROUND,
    PADDING,
    SceneBatches,
    coverage,
    train_tokenizer,
)
from sca_batch.train.losses import mask_losses  # noqa: E402
from sca_batch.train.recipes import TINY  # noqa: E402
from sca_batch.train.scenes import compose_scene  # noqa: E402
from sca_batch.train.scoring import names_concept  # noqa: E402

RECIPE = dataclasses.replace(TINY, images_per_step=3, tokenizer_scenes=30, vocab_size=330)
TASK_CAPTION = TASKS.index("caption")


@pytest.fixture(scope="module")
def art() -> Art:
    def draw(label: str) -> np.ndarray:
        alpha = np.zeros((128, 128), np.uint8)
        if label == "plank":
            alpha[40:90] = 255
        else:
            cv2.circle(alpha, (64, 64), 60, 255, -1)
        return np.dstack([*(np.full_like(alpha, c) for c in (200, 40, 40)), alpha])

    labels = ("disc", "plank")
    return Art(
        concepts=tuple(Concept(label) for label in labels),
        pictograms=tuple(Pictogram(x, TRAIN_STYLES[0], x, None, draw(x)) for x in labels),
    )


@pytest.fixture(scope="module")
def batches(art: Art, tmp_path_factory: pytest.TempPathFactory) -> SceneBatches:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(RECIPE, art, folder)
    return SceneBatches(RECIPE, art, folder, eos_token_id=0)


def test_a_batch_follows_from_its_step_alone(batches):
    first, again, other = batches[5], batches[5], batches[6]

    for item in dataclasses.fields(first):
        torch.testing.assert_close(getattr(first, item.name), getattr(again, item.name))
    assert not torch.equal(first.pixels_B3SS, other.pixels_B3SS)


def test_the_scenes_of_a_step_follow_those_of_the_step_before(batches, art):
    batch = batches[2]

    for i in range(3):
        scene = compose_scene(6 + i, art)
        np.testing.assert_array_equal(batch.pixels_B3SS[i], preprocess(scene.image, 256))


def test_points_lie_where_their_object_is_seen_and_background_points_on_none(batches, art):
    for step in range(4):
        batch = batches[step]
        scenes = [compose_scene(3 * step + i, art) for i in range(3)]
        firsts = np.cumsum([0, *(len(scene.masks) for scene in scenes)])
        per_image = RECIPE.points_per_image + RECIPE.background_points_per_image
        assert batch.image_P.tolist() == [b for b in range(3) for _ in range(per_image)]
        for (x, y), k, b in zip(
            batch.points_P2.int().tolist(), batch.object_P, batch.image_P, strict=True
        ):
            on = scenes[b].masks[:, y, x]
            if k == BACKGROUND:
                assert not on.any()
            else:
                assert on[k - firsts[b]]


def test_boxes_are_near_the_box_of_their_object_and_inside_the_image(batches, art):
    batch = batches[1]
    truth = np.concatenate([compose_scene(3 + i, art).boxes_xyxy for i in range(3)])

    difference = (batch.boxes_R4.numpy() - truth[batch.object_R]).round(3)
    assert np.abs(difference).max() <= 256 / 50 + 1e-3
    assert (difference != 0).any()
    assert batch.boxes_R4.min() >= 0
    assert batch.boxes_R4.max() <= 256
    assert torch.equal(batch.image_R, batch.image_N[batch.object_R])


def test_captions_belong_to_the_prompted_objects_and_end(batches, art):
    tokenizer = read_tokenizer(batches.tokenizer_folder, eos_token_id=0)
    batch = batches[0]
    scenes = [compose_scene(i, art) for i in range(3)]
    phrases = [captions for scene in scenes for captions in scene.captions]
    concepts = [concept for scene in scenes for concept in scene.concepts]
    objects = torch.cat([batch.object_R, batch.object_P[batch.captioned_P]])

    assert len(batch.ids_CL) == len(batch.task_C) == len(objects)
    for ids, task, k in zip(batch.ids_CL, batch.task_C, objects, strict=True):
        kept = ids[ids != PADDING].tolist()
        assert kept[-1] == 0
        text = tokenizer.decode(kept)
        assert text in (phrases[k] if task == TASK_CAPTION else (concepts[k],))


def test_coverage_is_the_share_of_a_cell():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :4, :3] = True

    assert coverage(mask, 2).tolist() == [[[0.75, 0.0], [0.0, 0.0]]]


def test_a_right_mask_costs_nothing_and_background_asks_only_for_a_low_iou():
    cover = torch.zeros(1, 8, 8)
    cover[0, 2:6, 2:6] = 1
    logits = ((cover - 0.5) * 60).expand(2, 4, 8, 8).clone().requires_grad_()
    iou = torch.tensor([[1.0] * 4, [0.3] * 4], requires_grad=True)

    focal, dice, iou_loss = mask_losses(
        logits, iou, cover, torch.tensor([0, BACKGROUND]), other_masks_weight=0.1
    )
    (focal + dice + iou_loss).backward()

    assert focal.item() == pytest.approx(0, abs=1e-6)
    assert dice.item() == pytest.approx(0, abs=1e-6)
    assert iou_loss.item() == pytest.approx(0.3**2 / 2)
    assert logits.grad[1].abs().max() == 0
    assert (iou.grad[1] > 0).all()


def test_of_three_masks_the_best_one_is_trained_most():
    cover = torch.zeros(1, 8, 8)
    cover[0, :, :4] = 1
    logits = torch.zeros(1, 4, 8, 8)
    logits[0, 2] = (cover[0] - 0.5) * 4
    logits.requires_grad_()

    focal, dice, _ = mask_losses(
        logits, torch.zeros(1, 4), cover, torch.tensor([0]), other_masks_weight=0.0
    )
    (focal + dice).backward()

    moved = logits.grad.abs().amax(dim=(0, 2, 3))
    assert moved[0] > 0
    assert moved[2] > 0
    assert moved[1] == moved[3] == 0


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a red fire engine", True),
        ("a small fire truck on the left", True),
        ("a fire", False),
        ("a dog behind a fire engine", False),
        ("a fire enginery", False),
    ],
)
def test_a_concept_is_named_by_the_subject_in_whole_words(caption, named):
    assert names_concept(caption, Concept("fire engine", synonyms=("fire truck",))) is named
