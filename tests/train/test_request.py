"""Options of a training: made from the request's fields, and refused before anything is read."""

from pathlib import Path

import click
import pytest

from sca_batch.cli.train import train
from sca_batch.errors import ScaError
from sca_batch.options import option_fields, with_options
from sca_batch.train.recipes import CAPTION_RECIPES
from sca_batch.train.request import RunRequest, TrainRequest

FIELDS = {found.name: found for found in option_fields(TrainRequest)}
PARAMS = {param.name: param for param in train.params if isinstance(param, click.Option)}
# What the command has beside the request's fields: they ask for something else than a run.
OF_THE_COMMAND = {"dry_run", "curves"}


def test_every_option_is_a_field_and_every_field_an_option():
    assert PARAMS.keys() - OF_THE_COMMAND == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_option_has_its_fields_name_default_choices_and_help(name):
    found, param = FIELDS[name], PARAMS[name]
    assert found.flag in param.opts
    assert param.default == found.default
    assert param.help == found.option.help
    assert param.multiple == (found.option.form == "repeated")
    if found.choices:
        assert tuple(param.type.choices) == found.choices


def test_numbers_and_workers_are_put_into_the_recipe():
    request = with_options(TrainRequest("vg"), {"set": ("lr=2e-4",), "workers": 3})
    recipe = request.resolved()
    assert (recipe.lr, recipe.workers) == (2e-4, 3)
    assert TrainRequest("vg").resolved() == CAPTION_RECIPES["vg"]


@pytest.mark.parametrize("name", ["tiny", "tiny-sam"])
def test_the_bundled_models_recipes_are_sent_to_its_own_command(name):
    with pytest.raises(ScaError, match=f"in a clone .*: python -m sca_tiny train {name}$"):
        TrainRequest(name).resolved()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: TrainRequest("vgg").resolved(), "no recipe 'vgg'; expected one of vg-ablation"),
        (lambda: TrainRequest().resolved(), "no recipe; expected one of vg-ablation"),
        (lambda: RunRequest().folder, "no folder for the run; name one: -o runs/NAME"),
        (lambda: RunRequest(output=Path(__file__)).folder, "a file is there"),
        (lambda: RunRequest(trackers=("aim",)), "--track 'aim': expected tensorboard, wandb"),
        (lambda: RunRequest(workers=-1), "--workers is -1; expected a whole number of at least 0"),
        (
            lambda: TrainRequest("vg", validation=Path("none")).manifests(CAPTION_RECIPES["vg"]),
            "--validation none: no such file",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(ask, message):
    with pytest.raises(ScaError, match=message):
        ask()
