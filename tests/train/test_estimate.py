import re

import pytest

from sca_batch.overrides import with_settings
from sca_batch.train.estimate import preview
from sca_batch.train.recipes import CAPTION_RECIPES


def lines_of(name, *settings):
    return list(preview(with_settings(CAPTION_RECIPES[name], settings)))


@pytest.mark.parametrize(
    ("recipe", "trainable"),
    [
        ("vg", 19_432_832),
        ("vg-llama", 19_949_312),
        ("encoder-clip336", 20_285_824),
        ("encoder-clip336-sam-mixer", 20_285_824 + 3_291_264),
    ],
)
def test_the_published_numbers_of_trainable_parameters(recipe, trainable):
    if recipe.startswith("encoder"):
        pytest.importorskip("timm")
    lines = lines_of(recipe)

    assert f"trainable parameters: {trainable:,}" in lines
    grouped = [int(re.search(r"([\d,]+) parameters", x)[1].replace(",", "")) for x in lines
               if x.startswith("group:")]  # fmt: skip
    assert sum(grouped) == trainable


def trained_by(recipe):
    """What the paper's counts say for a recipe."""
    if recipe.timm_encoder:
        return 20_285_824 + (3_291_264 if recipe.also_trained else 0)
    return 19_949_312 if "llama" in recipe.language_model else 19_432_832


@pytest.mark.parametrize("name", CAPTION_RECIPES)
def test_every_recipe_says_what_it_trains_and_costs(name):
    recipe = CAPTION_RECIPES[name]
    if recipe.timm_encoder:
        pytest.importorskip("timm")
    lines = lines_of(name)

    assert f"trainable parameters: {trained_by(recipe):,}" in lines
    parts = [int(x.split()[-1].replace(",", "")) for x in lines if x.startswith("trained: ")]
    assert sum(parts) == trained_by(recipe)
    groups = [x for x in lines if x.startswith("group: ")]
    assert [x.split("weight decay ")[1] for x in groups] == ["0", "0.0001"]
    assert all(f"lr {recipe.learning_rate:g}" in x for x in groups)
    images = recipe.last_step * recipe.images_per_step
    [cost] = [x for x in lines if " steps of " in x]
    assert cost.startswith(f"{recipe.last_step:,} steps of {recipe.images_per_step} images")
    assert f"{images:,} images, at most {16 * images:,} regions" in cost
    shown = [x.split(":")[0] for x in lines if x.endswith(" epochs")]
    assert shown == [part.name for part in recipe.data]


def test_the_cost_is_that_of_table_one():
    lines = lines_of("vg")

    assert any("6,400,000 images, at most 102,400,000 regions" in line for line in lines)
    assert "vg: 77,398 images, 82.7 epochs" in lines
    assert "40 validations of at most 800 images" in lines
    assert not any(line.startswith("Warning") for line in lines)


def test_a_learning_rate_above_the_ceiling_is_warned_about():
    assert any(
        line.startswith("Warning: lr 0.0001 for 8 images becomes 0.0008")
        for line in lines_of("vg", "images_per_step=64")
    )


def test_parts_of_a_mix_are_seen_equally_often():
    epochs = {line.split(",")[-1] for line in lines_of("weak-mix") if line.endswith("epochs")}

    assert len(epochs) == 1
