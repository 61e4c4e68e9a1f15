import dataclasses

import pytest

from sca_batch.errors import ScaError
from sca_batch.overrides import with_settings
from sca_batch.train.recipes import CAPTION_RECIPES, DataPart, check_recipe
from sca_tiny.recipes import TINY

VG = CAPTION_RECIPES["vg"]


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("lr=2e-4", "lr", 2e-4),
        ("steps=1e5", "steps", 100_000),
        ("gradient_checkpointing=true", "gradient_checkpointing", True),
        ("sam=./my=sam", "sam", "./my=sam"),
        ("jitter_scales=[0.5, 1]", "jitter_scales", (0.5, 1.0)),
        ("jitter_scales=null", "jitter_scales", None),
        ("also_trained=mask_decoder.transformer", "also_trained", ("mask_decoder.transformer",)),
        ('lr_factors=[["task_tokens", 2]]', "lr_factors", (("task_tokens", 2.0),)),
        ('data=[["mine", 12]]', "data", (DataPart("mine", 12),)),
    ],
)
def test_one_number_of_a_recipe_is_changed(setting, field, value):
    changed = with_settings(VG, [setting])

    assert getattr(changed, field) == value
    assert dataclasses.replace(changed, **{field: getattr(VG, field)}) == VG


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=fast", "expected a number"),
        ("steps=1.5", "expected a whole number"),
        ("steps=true", "expected a whole number"),
        ("gradient_checkpointing=1", "true or false"),
        ("jitter_scales=[1]", "JSON for"),
        ("lrr=1", "did you mean lr"),
        ("name=other", "no name"),
        ("lr.peak=1", "lr has no parts"),
        ("lr", "expected key=value"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_what_would(setting, message):
    with pytest.raises(ScaError, match=message):
        with_settings(VG, [setting])


def test_settings_reach_into_the_sizes_of_the_small_model():
    changed = with_settings(TINY, ["sam.sizes.image_size=128", "sam.lr=2e-3"])

    assert (changed.sam.sizes.image_size, changed.sam.lr) == (128, 2e-3)


def test_the_learning_rate_is_scaled_with_the_images_and_warned_about_above_the_ceiling():
    assert CAPTION_RECIPES["vg-ablation"].learning_rate == pytest.approx(1e-4)
    assert VG.learning_rate == pytest.approx(4e-4)
    assert VG.warning == ""
    larger = with_settings(VG, ["images_per_step=64"])
    assert larger.learning_rate == pytest.approx(8e-4)
    assert "0.0008" in larger.warning
    assert CAPTION_RECIPES["objects365-pretrain"].learning_rate == pytest.approx(4e-4)


@pytest.mark.parametrize(
    "setting",
    ["images_per_step=0", "lr=-1", "precision=int8", "jitter_scales=[2, 1]", "flip_chance=2"],
)
def test_numbers_that_cannot_be_meant_are_refused(setting):
    with pytest.raises(ScaError, match=setting.split("=")[0]):
        check_recipe(with_settings(VG, [setting]))


def test_every_recipe_is_sound_and_knows_its_data():
    for recipe in CAPTION_RECIPES.values():
        check_recipe(recipe)
        assert recipe.warning == ""
    assert [part.name for part in CAPTION_RECIPES["weak-mix"].data] == [
        "coco", "v3det", "objects365",
    ]  # fmt: skip
